# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A short load on a GPU with nothing but the driver's own library: no CUDA toolkit, no torch.

An idle GPU's clock proves nothing, so something has to run while the clock is read. The driver compiles the few
lines of PTX below; they multiply and add in registers and touch no memory.

Private to this collection: import it from nowhere else.
"""

from __future__ import annotations

import ctypes
import time
import types
import typing as t

LIBRARY = "libcuda.so.1"
# One launch takes about this long, so that the load can end soon after it should.
_LAUNCH_S = 0.05
_FIRST_ROUNDS = 20_000
_MOST_LAUNCHES = 800  # the queue of a stream holds about a thousand
_THREADS = 256
_BLOCKS_PER_PROCESSOR = 4
_MULTIPROCESSOR_COUNT = 16  # CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT
_NAME = b"burn"
_CHAINS = 8


def ptx() -> bytes:
    """The kernel: independent chains of multiply-add, whose sum is stored where no compiler can leave it out."""
    chains = range(_CHAINS)
    start = "\n".join(f"  add.f32 %f{n}, %f20, 0f3F{n}00000;" for n in chains)
    step = "\n".join(f"  fma.rn.f32 %f{n}, %f{n}, %f21, %f22;" for _round in range(4) for n in chains)
    add = "\n".join(f"  add.f32 %f0, %f0, %f{n};" for n in chains[1:])
    return f""".version 6.0
.target sm_50
.address_size 64
.visible .entry burn(.param .u64 out, .param .u32 rounds)
{{
  .reg .f32 %f<24>;
  .reg .b32 %r<4>;
  .reg .b64 %rd<2>;
  .reg .pred %p<3>;
  mov.u32 %r1, %tid.x;
  cvt.rn.f32.u32 %f20, %r1;
  mov.f32 %f21, 0f3F7FFFF0;
  mov.f32 %f22, 0f3A83126F;
{start}
  ld.param.u32 %r2, [rounds];
again:
{step}
  sub.u32 %r2, %r2, 1;
  setp.ne.u32 %p1, %r2, 0;
  @%p1 bra again;
{add}
  setp.eq.f32 %p2, %f0, 0fC2F6E979;
  @!%p2 bra done;
  ld.param.u64 %rd1, [out];
  st.global.f32 [%rd1], %f0;
done:
  ret;
}}
""".encode("ascii")


class LoadError(Exception):
    """Why there is no load, in words."""


class Load:
    """A load on one GPU, from the start of the ``with`` block until its launches are done."""

    def __init__(self, index: int, seconds: float, library: t.Any = None) -> None:
        self._index = index
        self._seconds = seconds
        self._cuda = library
        self._context = ctypes.c_void_p()
        self._memory = ctypes.c_uint64()
        self._device = ctypes.c_int()
        self.ends_at = 0.0

    def _call(self, name: str, *arguments: t.Any) -> None:
        code = getattr(self._cuda, name)(*arguments)
        if code != 0:
            raise LoadError(f"{name} of {LIBRARY} failed with CUDA error {code}")

    def _launch(self, function: ctypes.c_void_p, blocks: int, rounds: int) -> None:
        count = ctypes.c_uint(rounds)
        arguments = (ctypes.c_void_p * 2)(
            ctypes.cast(ctypes.byref(self._memory), ctypes.c_void_p), ctypes.cast(ctypes.byref(count), ctypes.c_void_p)
        )
        self._call("cuLaunchKernel", function, blocks, 1, 1, _THREADS, 1, 1, 0, None, arguments, None)

    def __enter__(self) -> Load:
        if self._cuda is None:
            try:
                self._cuda = ctypes.CDLL(LIBRARY)
            except OSError as error:
                raise LoadError(f"{LIBRARY} cannot be loaded ({error})") from None
        self._call("cuInit", 0)
        self._call("cuDeviceGet", ctypes.byref(self._device), self._index)
        processors = ctypes.c_int()
        self._call("cuDeviceGetAttribute", ctypes.byref(processors), _MULTIPROCESSOR_COUNT, self._device)
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), self._device)
        try:
            self._start(processors.value * _BLOCKS_PER_PROCESSOR)
        except LoadError:
            self._release()
            raise
        return self

    def _start(self, blocks: int) -> None:
        self._call("cuCtxSetCurrent", self._context)
        image, function = ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuModuleLoadData", ctypes.byref(image), ctypes.c_char_p(ptx()))
        self._call("cuModuleGetFunction", ctypes.byref(function), image, ctypes.c_char_p(_NAME))
        self._call("cuMemAlloc_v2", ctypes.byref(self._memory), ctypes.c_size_t(4))
        # The first launch wakes the clocks, the second tells how long a round takes.
        self._launch(function, blocks, _FIRST_ROUNDS)
        self._call("cuCtxSynchronize")
        started = time.monotonic()
        self._launch(function, blocks, _FIRST_ROUNDS)
        self._call("cuCtxSynchronize")
        round_s = max(time.monotonic() - started, 1e-6) / _FIRST_ROUNDS
        launches = min(_MOST_LAUNCHES, max(1, int(self._seconds / _LAUNCH_S)))
        rounds = max(1, min(2**32 - 1, int(self._seconds / launches / round_s)))
        self.ends_at = time.monotonic() + self._seconds
        for _launch in range(launches):
            self._launch(function, blocks, rounds)

    def running(self) -> bool:
        """Whether the load has time left; the last half second is not counted, because clocks drop with its end."""
        return time.monotonic() < self.ends_at - min(0.5, self._seconds / 4)

    def _release(self) -> None:
        self._cuda.cuDevicePrimaryCtxRelease_v2(self._device)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        self._cuda.cuCtxSynchronize()
        self._release()
