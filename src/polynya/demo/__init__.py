"""The demo: two processes connect through an embedded server and exchange messages; then the NAT table.

    meeting = await meet(MeetingOptions(), notify, recording)   # run.py: the server, two child processes, the result
    table = run_table(on_cell)                                  # nats.py: the NAT table, compared with the prediction

Each peer is a child process (`peer.py`, run as `python -m polynya.demo.peer`). It writes JSON lines (`records.py`) to
its parent: its trace, its packets and finally its outcome. The parent merges them by time (`recording.py`), keeps the
current state of each peer (`watch.py`) and checks the result (`result.py`). All traffic stays on loopback.
"""
