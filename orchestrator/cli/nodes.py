"""`rexctl nodes`."""

from __future__ import annotations

from orchestrator.cli.common import HomeOption, JsonOption, open_stack, open_store, print_json, warn_if_stopped


def command(home: HomeOption = None, json: JsonOption = False) -> None:
    """List the nodes of the cluster: what each has, whether it is used, why it is left out, what runs there."""
    import time

    from orchestrator.control.census import nodes_view

    store = open_store(home)
    view = nodes_view(store, now=time.time())
    if json:
        return print_json(view)
    print(f"{'HOST':<20} {'ADDRESS':<15} {'CPUS':>5} {'NPUS':>5}  {'STATE':<12}  JOBS")
    for node in view:
        jobs = ", ".join(node["jobs"]) or "-"
        shown = f"{node['host']:<20} {node['address']:<15} {node['cpus']:>5g} {node['npus']:>5g}  {node['state']:<12}"
        print(f"{shown}  {jobs}")
        if node["problem"]:
            print(f"  {node['problem']}")
    return warn_if_stopped(open_stack(home), store)
