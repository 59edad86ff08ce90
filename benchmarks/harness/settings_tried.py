"""What several benchmarks change of their recipes."""

from __future__ import annotations

Changes = tuple[str, ...]
"""What is told to a case beside its recipe."""

SKEWED = 'partition={kind="dirichlet",silos=10,alpha=0.1,minimum=10}'

CODECS = {
    "weights, 8 bits": 'kind="weights",bits=8',
    "weights, 4 bits": 'kind="weights",bits=4',
    "updates, 8 bits": 'kind="updates",bits=8,entropy=true',
    "updates, 4 bits": 'kind="updates",bits=4,entropy=true',
    "updates, 2 bits": 'kind="updates",bits=2,reach=3,entropy=true',
    "updates, 2 bits near": 'kind="updates",bits=2,reach=2.5,entropy=true',
}
