"""`rexctl up`."""

from __future__ import annotations

from orchestrator.cli.common import HomeOption, JsonOption, open_stack, print_json, say


def command(home: HomeOption = None, json: JsonOption = False) -> None:
    """Bring up what is missing on this machine: Ray, MLflow, the control plane."""
    stack = open_stack(home)
    stack.up(say)
    found = {
        "home": str(stack.home.path),
        "ray_address": stack.ray_address,
        "mlflow_uri": stack.mlflow_uri,
        "objects": stack.home.objects_uri,
        "processes": {service.name: service.pid for service in stack.running()},
    }
    if json:
        return print_json(found)
    for key, value in found.items():
        shown = ", ".join(f"{name} {pid}" for name, pid in value.items()) if isinstance(value, dict) else value
        print(f"{key:<12} {shown}")
    return None
