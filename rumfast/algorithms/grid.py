"""Where plan search starts: settings of each algorithm worth trying on small data at about five passes."""

GRID: dict[str, tuple[str, ...]] = {
    "none": ("",),
    "finetune": ("lr=0.03", "lr=0.1", "lr=0.2", "lr=0.3"),
    "l1_sparse": (
        "lr=0.1, alpha=0.0001",
        "lr=0.1, alpha=0.0005",
        "lr=0.2, alpha=0.0001",
        "lr=0.2, alpha=0.0005",
    ),
    "neggrad": ("lr=0.0001", "lr=0.0002", "lr=0.0005", "lr=0.001"),
    "neggrad_plus": (
        "lr=0.01, alpha=0.9",
        "lr=0.03, alpha=0.8",
        "lr=0.03, alpha=0.9",
        "lr=0.03, alpha=0.95",
        "lr=0.1, alpha=0.95",
    ),
    "random_label": ("lr=0.003", "lr=0.01", "lr=0.03", "lr=0.1"),
    "salun": ("lr=0.003", "lr=0.01", "lr=0.03", "lr=0.1"),
    "scrub": ("lr=0.005", "lr=0.01", "lr=0.01, beta=0.1", "lr=0.05, msteps=2", "lr=0.1, msteps=1"),
    "influence": (
        "alpha=0.1",
        "alpha=0.2",
        "alpha=0.4",
        "alpha=0.05, dampening=0.001",
        "alpha=0.1, dampening=0.001",
    ),
    "bad_teacher": ("lr=0.01", "lr=0.03", "lr=0.1", "lr=0.03, temperature=4", "lr=0.1, temperature=4"),
    "ssd": ("alpha=4, dampening=4", "alpha=8", "alpha=16", "alpha=16, dampening=0.1"),
    "cfk": ("lr=0.1, k=3", "lr=0.3, k=2", "lr=0.3, k=3"),
    "euk": ("lr=0.05", "lr=0.1", "lr=0.02, k=3", "lr=0.05, k=3", "lr=0.1, k=3"),
}
