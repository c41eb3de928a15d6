"""An attempt's logs: on the node, in the object store, from afar, and how much of the disk they may take."""
