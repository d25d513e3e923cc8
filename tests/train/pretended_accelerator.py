"""DeepSpeed's CPU accelerator made to behave as CUDA does towards it: with streams, events, and names of devices."""

from contextlib import nullcontext

from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator


class Stream:
    """A stream of work."""

    def __init__(self, note):
        self.note = note

    def wait_stream(self, stream):
        pass

    def wait_event(self, event):
        pass

    def synchronize(self):
        self.note("synchronize", __file__)


class Event:
    """An event in a stream, which is never reached before somebody waits for it."""

    def __init__(self, note):
        self.note = note

    def record(self, stream=None):
        pass

    def query(self):
        return False

    def synchronize(self):
        self.note("event", __file__)


class PretendedAccelerator(CPU_Accelerator):
    """Computes on the CPU, which it calls `cpu:0`, and says that it is asynchronous.

    Args:
        note: is told of each synchronization.
    """

    def __init__(self, note):
        super().__init__()
        self.note, self.the_stream = note, Stream(note)

    def is_synchronized_device(self):
        return False

    def device_name(self, device_index=None):
        return "cpu:0"

    def current_device_name(self):
        return "cpu:0"

    def synchronize(self, device_index=None):
        self.note("synchronize", __file__)

    @property
    def Stream(self):
        return lambda *args, **kwargs: Stream(self.note)

    @property
    def Event(self):
        return lambda *args, **kwargs: Event(self.note)

    def stream(self, stream):
        return nullcontext()

    def current_stream(self, device_index=None):
        return self.the_stream

    def default_stream(self, device_index=None):
        return self.the_stream
