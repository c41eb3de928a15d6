"""`rexctl events`."""

from __future__ import annotations

from datetime import datetime

from orchestrator.cli.common import HomeOption, JobArgument, JsonOption, open_store, print_json


def command(job: JobArgument, home: HomeOption = None, json: JsonOption = False) -> None:
    """Print a job's event log, oldest first."""
    from orchestrator.cli.follow import event_line

    store = open_store(home)
    entries = store.events(store.get(job).id)
    if json:
        return print_json([dict(entry) for entry in entries])
    for entry in entries:
        at = datetime.fromtimestamp(entry["at"]).isoformat(sep=" ", timespec="milliseconds")
        print(f"{at}  {entry['state']:<10} {event_line(entry)}")
    return None
