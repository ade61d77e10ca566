"""The parts of the demo: an agent from recorded rollouts to a trained policy."""
