"""ICE in SDP text: candidate lines, sections, fragments and signals (RFC 8839, RFC 8840).

`candidate` is the grammar of one line and imports nothing from `polynya.ice`; `Candidate.parse` and `Candidate.to_sdp`
use it. The other modules build on the classes of `polynya.ice`, one on another: `section`, `fragment`, `signal`.
"""
