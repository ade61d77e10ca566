"""Custom ops and what runs inside them: row kernels, GEMMs with fp32 results, the fused head. Users import loss and logprob."""
