"""What the benchmarks measured of the recipes that `advice` knows; a test compares the two."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Measured:
    """One recipe on one size of real text.

    Args:
        name: the benchmark; its figures are in benchmarks/results/NAME.json.
        n: vectors.
        dim: their length.
        factory: FAISS's.
        setting: what it was searched with.
        recall: of the true ten nearest, the share that was found.
        ms: median of a single query on one core.
    """

    name: str
    n: int
    dim: int
    factory: str
    setting: str
    recall: float
    ms: float

    @property
    def where(self) -> str:
        """The file and the row of it."""
        asked = f", {self.setting}" if self.setting else ""
        return (
            f"benchmarks/results/{self.name}.json, n={self.n:,}, dim={self.dim}, "
            f"{self.factory}{asked}"
        )


MEASURED: tuple[Measured, ...] = (
    Measured("factories", 10_216, 384, "Flat", "", 1.0, 0.43),
    Measured("factories", 10_216, 384, "HNSW32,Flat", "ef_search=128", 0.994, 0.24),
    Measured("factories", 10_216, 384, "IVF256,Flat", "nprobe=16", 0.906, 0.11),
    Measured("million", 100_000, 384, "Flat", "", 1.0, 6.4),
    Measured("million", 100_000, 384, "HNSW32,Flat", "ef_search=128", 0.937, 0.63),
    Measured("million", 100_000, 384, "IVF1024,Flat", "nprobe=64", 0.9, 0.67),
    Measured("million", 100_000, 384, "IVF1024,SQ8", "nprobe=64 rescore=4", 0.9, 0.47),
    Measured("million", 100_000, 384, "IVF1024,RaBitQ", "nprobe=64 rescore=10", 0.873, 0.35),
    Measured("million", 100_000, 384, "SQ8", "rescore=4", 1.0, 4.3),
    Measured("million", 100_000, 384, "RaBitQ", "rescore=10", 0.957, 1.3),
    Measured("million", 100_000, 384, "OPQ48,IVF1024,PQ48np", "nprobe=64 rescore=10", 0.892, 0.41),
    Measured("million", 1_000_000, 384, "Flat", "", 1.0, 61.0),
    Measured("million", 1_000_000, 384, "HNSW32,Flat", "ef_search=128", 0.894, 0.69),
    Measured("million", 1_000_000, 384, "IVF4096,Flat", "nprobe=128", 0.895, 7.0),
    Measured("million", 1_000_000, 384, "IVF4096,SQ8", "nprobe=128 rescore=4", 0.895, 1.8),
    Measured("million", 1_000_000, 384, "IVF4096,RaBitQ", "nprobe=128 rescore=10", 0.877, 1.0),
    Measured("million", 1_000_000, 384, "SQ8", "rescore=4", 1.0, 31.0),
    Measured("million", 1_000_000, 384, "RaBitQ", "rescore=10", 0.967, 12.0),
    Measured(
        "million", 1_000_000, 384, "OPQ48,IVF4096,PQ48np", "nprobe=128 rescore=10", 0.883, 1.6
    ),
)
