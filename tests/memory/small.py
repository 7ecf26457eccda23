"""Options with which windows fill, chunks end and blocks repeat within a few steps. Other memories run as they come."""

from typing import Any

SMALL: dict[str, dict[str, Any]] = {
    "aaren": {"heads": 2},
    "agalite": {"heads": 2, "eta": 2, "cosines": 4, "expand": 2},
    "attention": {"window": 5, "heads": 2},
    "deltanet": {"heads": 2, "updates": 2, "negative": True, "decay": "head", "chunk": 4},
    "ffm": {"traces": 3, "contexts": 2},
    "gla": {"heads": 2, "chunk": 4},
    "gtrxl": {"window": 5, "heads": 2, "expand": 2},
    "lru": {"state": 4},
    "lssl": {"state": 4, "inputs": 2},
    "mamba": {"state": 3, "expand": 2, "conv": 4},
    "mamba2": {"state": 3, "head": 8, "chunk": 4},
    "mamba3": {"state": 4, "head": 8, "chunk": 4},
    "mlstm": {"heads": 2, "chunk": 4},
    "rwkv7": {"heads": 2, "rank": 3, "chunk": 4},
    "s4d": {"state": 4},
    "s5": {"state": 8, "blocks": 2},
    "shm": {"size": 3, "thetas": 4},
    "slstm": {"heads": 2},
    "tcn": {"taps": 3, "dilation": 2},
    "ttt": {"heads": 2, "key": 3, "hidden": 4, "chunk": 4, "momentum": True},
}

VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("attention", {"window": 5, "heads": 2, "positions": "alibi", "retrievals": 2}),
    ("attention", {"window": 5, "heads": 2, "positions": "rope", "beta": 2.0}),
    ("attention", {"window": 5, "heads": 2, "positions": "xl"}),
    ("deltanet", {"heads": 2, "decay": "channel", "chunk": 4}),
    ("gla", {"heads": 2, "chunk": 4, "decay": "fixed"}),
    ("gla", {"heads": 2, "chunk": 4, "decay": "none", "feature": "elu", "normalise": "running"}),
    ("gla", {"heads": 2, "chunk": 4, "decay": "none", "feature": "dpfp", "normalise": "sum"}),
    ("gla", {"heads": 2, "chunk": 4, "negative": True}),
    ("mamba2", {"state": 3, "head": 8, "chunk": 4, "negative": True}),
    ("gtrxl", {"window": 5, "heads": 2, "expand": 2, "positions": "xl"}),
    ("lru", {"state": 4, "kind": "rtu"}),
    ("lru", {"state": 4, "kind": "rotrnn", "heads": 2}),
    ("lssl", {"state": 4, "inputs": 0, "basis": "legs", "train": "all", "discretisation": "bilinear"}),
    ("lssl", {"state": 3, "inputs": 2, "basis": "companion"}),
    ("mlstm", {"heads": 2, "chunk": 4, "input_gate": "sigmoid", "gate_cap": 15.0}),
    ("mlstm", {"heads": 2, "chunk": 4, "negative": True}),
    *(("para", {"cell": cell, "backend": backend}) for cell, backend in [("lstm", "auto"), ("gru", "newton")]),
    ("rnn", {"activation": "relu"}),
    *(("rnn", {"kind": kind}) for kind in ("indrnn", "leaky", "alrnn", "reservoir")),
    ("s4d", {"state": 6, "spectrum": "ptd", "input_weights": "one", "discretisation": "bilinear", "gate": "gss"}),
    ("ttt", {"heads": 2, "key": 3, "hidden": 4, "loss": "huber", "momentum": True, "decay": True}),
    ("ttt", {"heads": 2, "key": 3, "hidden": 0, "chunk": 3, "loss": "l3", "clip": 0.0}),
    ("shm", {"size": 3, "thetas": 1, "decay_max": 1.0}),
]
"""Options that make another memory of one, each tested as such."""
