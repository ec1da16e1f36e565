"""The main job, shown: two processes meet through an embedded server and talk; then every NAT against every other.

    meeting = await meet(MeetingOptions(), tell, recording)     # run.py: server, two child processes, what came of it
    table = run_table(tell)                                     # nats.py: the virtual network's table beside the rules

Each peer is a process of its own (`peer.py`, run as `python -m polynya.demo.peer`). It tells its parent what happens
in JSON lines (`records.py`): its trace, its packets and at last its outcome. The parent merges them by time
(`recording.py`), keeps a picture of each side (`watch.py`) and judges (`result.py`). Everything stays on loopback.
"""
