"""Ten thousand members on 256 slots, some of which die: ``python -m rumfast.bench.scale``.

A simulation on the real store, worker and cluster engine. What is simulated: training (a stand-in that waits
and then returns a made-up record), the cluster (threads for slots), its faults, and time, which runs
``speed`` times as fast for everything that waits. What is real, and not sped up: every file and listing.
"""

import argparse
import queue
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rumfast.bench.reduce import synthetic_record
from rumfast.config import TrainConfig
from rumfast.runtime import environment
from rumfast.store import write_json
from rumfast.sweeps import DataRef, Population, PopulationSpec
from rumfast.sweeps.engines.base import ATTEMPTS, ChunkEngine
from rumfast.sweeps.journal import read_history
from rumfast.sweeps.records import MemberRecord
from rumfast.sweeps.worker import Worker

SCHEMA = "rumfast/scale/1"
EXAMPLES, TESTS = 1000, 200  # of the made-up records; small, as this is about files, not bytes


@dataclass(frozen=True)
class Scene:
    """What happens; times in simulated seconds."""

    members: int = 10_000
    slots: int = 256
    nodes: int = 16
    member_s: float = 120.0
    deaths: float = 0.02  # share of members that take their worker down, before or after they are stored
    stale_s: float = 60.0  # age of the listings that engine and nodes see
    requeue_s: float = 180.0  # until a cluster starts a lost chunk again
    lost_at: float = (
        0.5  # of the time that all would take: a node is cut off, and works on unseen for a while
    )
    zombie_s: float = 300.0  # that it works on
    speed: float = 60.0
    seed: int = 0


class Killed(BaseException):
    """What SIGKILL does to a worker: nothing is caught, nothing is cleaned up."""


class StalePopulation(Population):
    """A population as a node sees it whose file system caches listings."""

    def __init__(self, root: Path, spec: PopulationSpec, stale_s: float) -> None:
        super().__init__(root, spec)
        self._stale_s = stale_s
        self._seen: set[int] = set()
        self._seen_at = -np.inf
        self._looking = threading.Lock()

    def _complete(self) -> set[int]:
        with self._looking:
            if time.monotonic() - self._seen_at > self._stale_s:
                self._seen, self._seen_at = super()._complete(), time.monotonic()
            return self._seen

    def has(self, index: int) -> bool:
        return index in self._complete()


class StandIn(Worker):
    """A worker that waits instead of training, and dies when the dice say so."""

    def __init__(self, cluster: "Cluster", node: int) -> None:
        super().__init__("cpu")
        self._cluster, self._node = cluster, node

    def population(self, root: Path) -> Population:
        return self._cluster.views[self._node]

    def _train(self, population: Population, index: int, images: str | None) -> tuple[bool, str]:
        scene, draw = self._cluster.scene, self._cluster.draw
        time.sleep(scene.member_s / scene.speed)
        fate = draw.random()
        if fate < scene.deaths / 2:
            raise Killed
        committed = population.save_record(self._cluster.record(index))
        self._cluster.commits[index] += committed
        if fate > 1 - scene.deaths / 2:
            raise Killed
        return committed, "done"

    def die(self) -> None:
        """No more signs of life."""
        for journal in self._journals.values():
            journal.close()


class Cluster(ChunkEngine):
    """The cluster: nodes with slots that pull chunks, and a scheduler that starts lost chunks again."""

    def __init__(self, root: Path, spec: PopulationSpec, scene: Scene) -> None:
        self.scene = scene
        self.poll_s, self.settle_s = 5 / scene.speed, scene.stale_s / scene.speed
        self.draw = np.random.default_rng(scene.seed)
        self.commits: Counter[int] = Counter()
        self.deaths = self.rounds = 0
        stale_s = scene.stale_s / scene.speed
        self.views = [StalePopulation(root, spec, stale_s) for _ in range(scene.nodes)]
        self.spec, self.root = spec, root
        self.waiting: queue.SimpleQueue[tuple[list[int], int]] = queue.SimpleQueue()
        self._counting = threading.Lock()
        self._alive = 0
        self.ended = threading.Event()
        self.cut_off = threading.Event()  # node 0

    @property
    def workers(self) -> int:
        return self.scene.slots

    def record(self, index: int) -> MemberRecord:
        return synthetic_record(self.spec, index, EXAMPLES, TESTS)

    def start(self) -> None:
        """Start all slots, and the clock of the node that will be lost."""
        scene = self.scene
        for slot in range(scene.slots):
            threading.Thread(target=self._slot, args=(slot % scene.nodes,), daemon=True).start()
        whole_s = scene.members * scene.member_s / scene.slots / scene.speed
        timer = threading.Timer(scene.lost_at * whole_s, self.cut_off.set)
        timer.daemon = True
        timer.start()

    def submit(self, population: Population, chunks: Sequence[list[int]]) -> "Cluster":
        self.rounds += 1
        with self._counting:
            self._alive += len(chunks)
        for chunk in chunks:
            self.waiting.put((chunk, 0))
        return self

    def alive(self) -> int:
        return self._alive

    def cancel(self) -> None:
        while not self.waiting.empty():
            try:
                self.waiting.get_nowait()
            except queue.Empty:
                return
            self._end()

    def _end(self) -> None:
        with self._counting:
            self._alive -= 1

    def _slot(self, node: int) -> None:
        worker = StandIn(self, node)
        while not self.ended.is_set() and not (node == 0 and self.cut_off.is_set()):
            try:
                chunk, attempt = self.waiting.get(timeout=self.poll_s)
            except queue.Empty:
                continue
            if not self._run(worker, node, chunk, attempt):
                worker.die()
                worker = StandIn(self, node)
                self.deaths += 1

    def _run(self, worker: StandIn, node: int, chunk: list[int], attempt: int) -> bool:
        """Do a chunk as ``do_chunk`` does; False if the worker died, or its node was given up meanwhile."""
        zombie_until = np.inf
        for index in chunk:
            if node == 0 and self.cut_off.is_set() and zombie_until == np.inf:
                self._again(chunk, attempt)  # while this slot, unaware, goes on
                zombie_until = time.monotonic() + self.scene.zombie_s / self.scene.speed
            if time.monotonic() > zombie_until:
                return False
            try:
                worker.do(self.root, index)
            except Killed:
                if zombie_until == np.inf:
                    self._again(chunk, attempt)
                return False
        if zombie_until == np.inf:
            self._end()
        return True

    def _again(self, chunk: list[int], attempt: int) -> None:
        if attempt + 1 == ATTEMPTS:
            self._end()
            return
        delay = self.scene.requeue_s / self.scene.speed
        timer = threading.Timer(delay, self.waiting.put, args=((chunk, attempt + 1),))
        timer.daemon = True
        timer.start()


def simulate(scene: Scene, folder: Path) -> dict[str, Any]:
    """Run the scene to its end; every number is counted, none assumed."""
    spec = PopulationSpec(
        kind="subsets",
        data=DataRef(location="simulated", fingerprint="0" * 64),
        train=TrainConfig(),
        precision="torch.float32",
        include=0.7,
    )
    Population.create(folder, spec)
    cluster = Cluster(folder, spec, scene)
    cluster.start()
    started, processor = time.monotonic(), time.process_time()
    stale_s = scene.stale_s / scene.speed
    cluster.run(StalePopulation(folder, spec, stale_s), range(scene.members))
    wall_s, processor_s = time.monotonic() - started, time.process_time() - processor
    cluster.ended.set()
    population, history = Population(folder, spec), read_history(folder)
    return {
        "schema": SCHEMA,
        "scene": asdict(scene),
        "stored": len(population.done(range(scene.members))),
        "committed_once": sum(count == 1 for count in cluster.commits.values()),
        "committed_more_often": sum(count > 1 for count in cluster.commits.values()),
        "worker_deaths": cluster.deaths,
        "rounds": cluster.rounds,
        "repeated": history.repeated,
        "simulated_hours": wall_s * scene.speed / 3600,
        "ideal_hours": scene.members * scene.member_s / scene.slots / 3600,
        "processor_ms_per_member": 1000 * processor_s / scene.members,
        "environment": dict(environment()),
    }


def main() -> None:
    """Simulate, print, and on request save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--members", type=int, default=Scene.members)
    parser.add_argument("--slots", type=int, default=Scene.slots)
    parser.add_argument("--save", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        record = simulate(Scene(members=arguments.members, slots=arguments.slots), Path(folder))
    for key in ("stored", "committed_once", "committed_more_often", "worker_deaths", "rounds", "repeated"):
        print(f"{key.replace('_', ' ')}: {record[key]}")
    print(f"{record['simulated_hours']:.2f} h simulated, {record['ideal_hours']:.2f} h with no fault or wait")
    print(f"{record['processor_ms_per_member']:.1f} ms of processor time per member, for engine and store")
    if arguments.save:
        write_json(arguments.save, record)


if __name__ == "__main__":
    main()
