"""The outside world: Ray gangs, node agents, msrun and its supervision, Ascend, object storage.

Belongs here: everything that touches a node, a process or a store. Only this package imports ray, and only its
`storage` imports boto3. Does not belong here: decisions (orchestrator) and anything that knows ReXNet (rexnet).
"""
