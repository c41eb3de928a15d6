"""Why an attempt ended: what its processes said last, what their ends mean, and the verdict over all nodes."""
