"""For VERL_USE_EXTERNAL_MODULES: whoever imports this module has verl use our fused head in this process."""

from .verl_head import use_fused_head

USED = use_fused_head()  # USED.close() undoes it
