"""One attempt on one node: the agent that speaks for it, the supervisor that owns msrun, the shim around each rank."""
