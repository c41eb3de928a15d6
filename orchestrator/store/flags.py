"""Names of the store's flags: single values that the control plane and the commands tell each other."""

PAUSED = "paused"  # grant nothing: the control plane is being shut down
READY = "control_plane"  # Unix time at which the loop last completed a round
