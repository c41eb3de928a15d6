"""The command line `rexctl`: one file a verb. Each parses, calls one function, prints.

Exit codes: 0 done; 1 the job ended failed or cancelled; 2 bad input, nothing was changed; 3 a part of the stack or
cluster could not do it now; 130 interrupted.
"""

import gc

# What a command makes while it starts are modules, which stay: looking for garbage in them takes a twelfth of that time
# (docs/supervision.md).
gc.set_threshold(100_000)
