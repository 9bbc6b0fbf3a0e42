# SPDX-License-Identifier: Apache-2.0
"""The detector of stalls, scored against the kernel's own tracepoints: `python -m bench.fidelity` from a checkout, as root.

The truth is taken by a tracefs instance of our own, by the clock that samples have, and where no tracepoint tells, by what a
load itself says of each of its touches. What a stall is follows from the truth's intervals by plain code of this package: it
shares neither the sampler's reading of events (csrc/trace.c) nor the detector's rules (pymemcg/detecting.py).

- `truth`      events → what each thread was held for, and the stalls that this makes
- `workloads`  what is run, and `work`, which runs in the processes of a group
- `running`    one workload in one environment: recorded, with the truth beside it
- `scores`     the detector's stalls beside the true ones
- `requests`   spans beside the true reclaim time of requests
- `costs`      what evidence `trace` costs
- `table`      all of it as Markdown
"""
