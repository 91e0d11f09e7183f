"""A CUDA device without a card. Import it before anything asks torch for a GPU; `device.cpp` has the device, here is what stands in for `torch.cuda`."""

import collections
import contextlib
import os
import sys
import warnings
from pathlib import Path

import torch

HERE = Path(__file__).parent


def _built():
    from torch.utils.cpp_extension import load

    folder = HERE / "build"
    folder.mkdir(exist_ok=True)
    os.environ.setdefault("MAX_JOBS", "1")
    return load("simcuda", [str(HERE / "device.cpp")], extra_cflags=["-O1"], build_directory=str(folder))


sim = _built()


def index(d=None) -> int:
    "The number of a device; the current one where none is given."
    i = d if isinstance(d, int) else None if d is None else torch.device(d).index
    return sim.device() if i is None else i


class device:
    "torch.cuda.device"

    def __init__(self, d):
        self.index = index(d)

    def __enter__(self):
        self.before = sim.device()
        sim.set_device(self.index)

    def __exit__(self, *error):
        sim.set_device(self.before)


class Stream:
    "torch.cuda.Stream: all of them are in step."

    def __init__(self, d=None, **more):
        self.device = torch.device("cuda", index(d))
        made.append(self.device)

    def wait_stream(self, other): ...

    def synchronize(self):
        synchronize()

    def is_capturing(self):
        return sim.capturing()


made: list[torch.device] = []  # the devices of all streams so far
streams = {i: Stream(i) for i in range(2)}  # the current one of each device


@contextlib.contextmanager
def stream(s):
    "torch.cuda.stream: inside, the stream and its device are the current ones."
    i = s.device.index
    before, streams[i] = streams[i], s
    try:
        with device(i):
            yield
    finally:
        streams[i] = before


def synchronize(d=None):
    if sim.capturing():
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing (synchronize)")
    note("synchronize")


class CUDAGraph:
    "torch.cuda.CUDAGraph"

    def __init__(self, keep_graph=False):
        self.graph = None

    def replay(self):
        replays[0] += 1
        self.graph.replay()


class graph:
    "torch.cuda.graph, which does not give the stream back where the capture cannot be ended."

    def __init__(self, g, pool=None, stream=None, **more):
        self.graph, self.inside = g, globals()["stream"](stream or Stream())

    def __enter__(self):
        synchronize()
        self.inside.__enter__()
        sim.begin()

    def __exit__(self, *error):
        try:
            self.graph.graph = sim.end()
        except RuntimeError as e:
            failures.append(str(e))
            abandoned.append(self.inside)  # a generator that is collected would clean up
            raise
        if not len(self.graph.graph):
            warnings.warn("The CUDA Graph is empty.", stacklevel=2)
        self.inside.__exit__(None, None, None)


replays, failures, abandoned = [0], [], []
waits: collections.Counter[tuple[str, str]] = collections.Counter()  # (file:line of maga, what for) -> how often


def note(what: str) -> None:
    "Count a wait under the innermost line of maga."
    frame, place = sys._getframe(1), "elsewhere"
    while frame is not None:
        if "/maga/" in frame.f_code.co_filename:
            place = f"{frame.f_code.co_filename.split('/maga/')[-1]}:{frame.f_lineno}"
            break
        frame = frame.f_back
    waits[place, what] += 1


@contextlib.contextmanager
def waited():
    "A counter of the waits inside."
    before = waits.copy()
    inside: collections.Counter[tuple[str, str]] = collections.Counter()
    yield inside
    inside.update(waits - before)


class Properties:
    name, major, minor, total_memory, multi_processor_count = "Pretended GPU", 9, 0, 80 << 30, 132


def bytes_of(storage) -> torch.Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)


def pretend() -> None:
    "Put all of it in the place of `torch.cuda`."
    stand_ins = {
        "is_available": lambda: True, "is_initialized": lambda: True, "_lazy_init": lambda: None, "init": lambda: None,
        "_is_in_bad_fork": lambda: False, "device_count": lambda: 2, "current_device": sim.device, "device": device,
        "set_device": lambda d: sim.set_device(index(d)), "get_device_name": lambda d=None: Properties.name,
        "get_device_properties": lambda d=None: Properties, "get_device_capability": lambda d=None: (9, 0),
        "is_bf16_supported": lambda including_emulation=True: True, "synchronize": synchronize, "Stream": Stream, "stream": stream,
        "current_stream": lambda d=None: streams[index(d)], "set_stream": lambda s: streams.__setitem__(s.device.index, s),
        "CUDAGraph": CUDAGraph, "graph": graph, "is_current_stream_capturing": sim.capturing, "empty_cache": lambda: None,
        "reset_peak_memory_stats": lambda d=None: None, "max_memory_allocated": lambda d=None: 0, "memory_allocated": lambda d=None: 0, "memory_reserved": lambda d=None: 0,
        "mem_get_info": lambda d=None: (80 << 30, 80 << 30), "get_rng_state": lambda d="cuda": sim.random_state(index(d)),
        "set_rng_state": lambda s, d="cuda": sim.set_random_state(index(d), s), "manual_seed": lambda s: sim.seed(sim.device(), s % 2**64),
        "manual_seed_all": lambda s: [sim.seed(i, s % 2**64) for i in range(2)],
    }  # fmt: skip
    for name, stand_in in stand_ins.items():
        setattr(torch.cuda, name, stand_in)
    torch.cuda._initialized = True
    plain = torch.UntypedStorage.clone  # of deepcopy; it makes storages where only a build with CUDA can
    torch.UntypedStorage.clone = lambda s: torch.empty_like(bytes_of(s)).copy_(bytes_of(s)).untyped_storage() if s.device.type == "cuda" else plain(s)
    torch.backends.cuda.is_built = lambda: True
    torch.cuda.amp.common.amp_definitely_not_available = lambda: False
    torch.accelerator.current_accelerator = lambda check_available=False: torch.device("cuda")
    torch.accelerator.current_stream = lambda d=None: streams[index(d)]
    sim.tell(note)


pretend()
