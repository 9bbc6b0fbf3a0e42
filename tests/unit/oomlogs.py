# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: E501 - lines of the kernel are as long as they are
"""What kernels that are not at hand print of OOM kills, as their source has it (mm/oom_kill.c, memcontrol.c, page_alloc.c)."""

from __future__ import annotations

OWN_3_10 = """\
[11000.100001] java invoked oom-killer: gfp_mask=0xd0, order=0, oom_score_adj=0
[11000.100002] java cpuset=docker-0a1b.scope mems_allowed=0-1
[11000.100003] CPU: 3 PID: 4300 Comm: java Not tainted 3.10.0-957.el7.x86_64 #1
[11000.100004] Call Trace:
[11000.100005]  [<ffffffff9e361dc1>] dump_stack+0x19/0x1b
[11000.100006] Task in /docker/0a1b killed as a result of limit of /docker/0a1b
[11000.100007] memory: usage 524288kB, limit 524288kB, failcnt 1234
[11000.100008] memory+swap: usage 524288kB, limit 524288kB, failcnt 0
[11000.100009] kmem: usage 0kB, limit 9007199254740988kB, failcnt 0
[11000.100010] Memory cgroup stats for /docker/0a1b: cache:84KB rss:524204KB rss_huge:0KB mapped_file:0KB swap:0KB inactive_anon:0KB
[11000.100011] [ pid ]   uid  tgid total_vm      rss nr_ptes swapents oom_score_adj name
[11000.100012] [ 4242]     0  4242   812345   131051     402        0             0 java
[11000.100013] [ 4400]     7  4400     1000      100      10        0           100 tail -f
[11000.100014] Memory cgroup out of memory: Kill process 4300 (java) score 998 or sacrifice child
[11000.100015] Killed process 4242 (java) total-vm:3249380kB, anon-rss:523800kB, file-rss:404kB, shmem-rss:0kB
"""
PARENT_4_15 = """\
Nov  2 10:11:12 node-1 kernel: [ 500.100001] celery invoked oom-killer: gfp_mask=0x14000c0(GFP_KERNEL), nodemask=(null), order=0, oom_score_adj=985
Nov  2 10:11:12 node-1 kernel: [ 500.100002] celery cpuset=c1 mems_allowed=0
Nov  2 10:11:12 node-1 kernel: [ 500.100003] CPU: 1 PID: 900 Comm: celery Not tainted 4.15.0-1035-aws #37
Nov  2 10:11:12 node-1 kernel: [ 500.100004] Task in /kubepods/burstable/podA/c1 killed as a result of limit of /kubepods/burstable/podA
Nov  2 10:11:12 node-1 kernel: [ 500.100005] memory: usage 1048576kB, limit 1048576kB, failcnt 77
Nov  2 10:11:12 node-1 kernel: [ 500.100006] memory+swap: usage 0kB, limit 9007199254740988kB, failcnt 0
Nov  2 10:11:12 node-1 kernel: [ 500.100007] Memory cgroup stats for /kubepods/burstable/podA: cache:0KB rss:0KB
Nov  2 10:11:12 node-1 kernel: [ 500.100008] Memory cgroup stats for /kubepods/burstable/podA/c1: cache:16KB rss:1000000KB
Nov  2 10:11:12 node-1 kernel: [ 500.100009] Memory cgroup stats for /kubepods/burstable/podA/c2: cache:0KB rss:40000KB
Nov  2 10:11:12 node-1 kernel: [ 500.100010] [ pid ]   uid  tgid total_vm      rss pgtables_bytes swapents oom_score_adj name
Nov  2 10:11:12 node-1 kernel: [ 500.100011] [  880]     0   880      255        1    32768        0          -998 pause
Nov  2 10:11:12 node-1 kernel: [ 500.100012] [  900]  1000   900   400000   250000  2200000        0           985 celery
Nov  2 10:11:12 node-1 kernel: [ 500.100013] Memory cgroup out of memory: Kill process 900 (celery) score 1937 or sacrifice child
Nov  2 10:11:12 node-1 kernel: [ 500.100014] Killed process 900 (celery) total-vm:1600000kB, anon-rss:990000kB, file-rss:10000kB, shmem-rss:0kB
Nov  2 10:11:12 node-1 kernel: [ 500.100015] oom_reaper: reaped process 900 (celery), now anon-rss:0kB, file-rss:0kB, shmem-rss:0kB
"""
OWN_5_1 = """\
[100.1] work invoked oom-killer: gfp_mask=0xcc0(GFP_KERNEL), order=0, oom_score_adj=0
[100.2] CPU: 0 PID: 51 Comm: work Not tainted 5.1.0 #1
[100.3] memory: usage 1024kB, limit 1024kB, failcnt 3
[100.4] oom-kill:constraint=CONSTRAINT_NONE,nodemask=(null),cpuset=/,mems_allowed=0,oom_memcg=/a,task_memcg=/a,task=work,pid=51,uid=0
[100.5] Memory cgroup out of memory: Kill process 51 (work) score 1000 or sacrifice child
[100.6] Killed process 51 (work) total-vm:4000kB, anon-rss:900kB, file-rss:4kB, shmem-rss:0kB
"""
MEM_INFO = """\
[200.10] Mem-Info:
[200.11] active_anon:1000 inactive_anon:240000 isolated_anon:0
[200.11]  active_file:20 inactive_file:30 isolated_file:0
[200.11]  unevictable:0 dirty:1 writeback:2
[200.11]  slab_reclaimable:500 slab_unreclaimable:700
[200.11]  mapped:50 shmem:60 pagetables:70
[200.11]  free:{free} free_pcp:0 free_cma:0
[200.12] Node 0 active_anon:4000kB inactive_anon:960000kB active_file:80kB inactive_file:120kB writeback_tmp:0kB
[200.13] Node 0 DMA free:4000kB boost:0kB min:256kB low:320kB high:384kB reserved_highatomic:0KB active_anon:0kB
[200.14] lowmem_reserve[]: 0 960 960 960
[200.15] Node 0 Normal free:{free_kb}kB boost:0kB min:20000kB low:25000kB high:30000kB reserved_highatomic:0KB
[200.16] lowmem_reserve[]: 0 0 0 0
[200.17] Node 0 DMA: 1000*4kB (U) 0*8kB 0*16kB 0*32kB 0*64kB 0*128kB 0*256kB 0*512kB 0*1024kB 0*2048kB 0*4096kB = 4000kB
[200.18] Node 0 Normal: 900*4kB (UME) 300*8kB (UM) 0*16kB 0*32kB 0*64kB 0*128kB 0*256kB 0*512kB 0*1024kB 0*2048kB 0*4096kB = 6000kB
[200.19] 110 total pagecache pages
[200.20] Free swap  = 12kB
[200.21] Total swap = 4096kB
[200.22] 262144 pages RAM
[200.23] 0 pages HighMem/MovableOnly
[200.24] 12144 pages reserved
[200.25] Tasks state (memory values in pages):
[200.26] [  pid  ]   uid  tgid total_vm      rss rss_anon rss_file rss_shmem pgtables_bytes swapents oom_score_adj name
[200.27] [     90]     0    90     3000      300      200      100        0    61440        0         -1000 sshd
[200.28] [    777]  1000   777   300000   230000   229000     1000        0  2000000      900             0 Web Content
"""
MACHINE_6_8 = (
    "[200.01] cc1plus invoked oom-killer: gfp_mask=0x140cca(GFP_HIGHUSER_MOVABLE|__GFP_COMP), order=0, oom_score_adj=0\n"
    "[200.02] CPU: 1 UID: 1000 PID: 4711 Comm: cc1plus Not tainted 6.12.1 #1\n"
    + MEM_INFO.format(free=5000, free_kb=19000)
    + "[200.30] oom-kill:constraint={constraint},nodemask={nodes},cpuset=/,mems_allowed=0,global_oom,"
    "task_memcg=/user.slice/a.scope,task=Web Content,pid=777,uid=1000\n"
    "[200.31] Out of memory: Killed process 777 (Web Content) total-vm:1200000kB, anon-rss:916000kB, file-rss:4000kB, "
    "shmem-rss:0kB, UID:1000 pgtables:1954kB oom_score_adj:0\n"
)
IN_PIECES = MACHINE_6_8.replace(
    "gfp_mask=0x140cca(GFP_HIGHUSER_MOVABLE|__GFP_COMP), order=0", "gfp_mask=0xcc0(GFP_KERNEL), order=3"
)
MACHINE = MACHINE_6_8.format(constraint="CONSTRAINT_NONE", nodes="(null)")
FRAGMENTED = IN_PIECES.format(constraint="CONSTRAINT_NONE", nodes="(null)").replace("free:19000kB", "free:90000kB")
LONE = (
    "Memory cgroup out of memory: Killed process 12 (a) total-vm:9kB, anon-rss:8kB, file-rss:0kB, shmem-rss:0kB, UID:0 "
    "pgtables:40kB oom_score_adj:-998"
)
GROUP = """\
[1.0] a invoked oom-killer: gfp_mask=0xcc0(GFP_KERNEL), order=0, oom_score_adj=0
[1.1] memory: usage 1024kB, limit 1024kB, failcnt 3
[1.2] oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=/,mems_allowed=0,oom_memcg=/a,task_memcg=/a,task=a,pid=51,uid=0
[1.3] Memory cgroup out of memory: Killed process 51 (a) total-vm:4kB, anon-rss:4kB, file-rss:0kB, shmem-rss:0kB, UID:0 pgtables:4kB oom_score_adj:0
[1.4] Tasks in /a are going to be killed due to memory.oom.group set
[1.5] Memory cgroup out of memory: Killed process 51 (a) total-vm:4kB, anon-rss:4kB, file-rss:0kB, shmem-rss:0kB, UID:0 pgtables:4kB oom_score_adj:0
[1.6] Memory cgroup out of memory: Killed process 52 (b) total-vm:4kB, anon-rss:4kB, file-rss:0kB, shmem-rss:0kB, UID:0 pgtables:4kB oom_score_adj:0
"""
