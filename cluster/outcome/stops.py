"""Why a node ends an attempt: the `stop_why` of its record, where it is not the value of a Cause."""

from __future__ import annotations

PEER_FAULT = "peer_fault"  # something of the gang failed on another node
PEER_HANGS = "peer_hangs"  # the same for a hang: this node's stacks are wanted first
AGENT_GONE = "agent_gone"
LEASE_OVER = "lease_over"
REVOKED = "revoked"  # the control plane has taken the lease back
START_TIMEOUT = "start_timeout"  # no worker has reported in time
