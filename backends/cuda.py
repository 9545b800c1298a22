"""Whether an image wants a newer CUDA than its host's driver has: a warning, since much of CUDA runs all the same.

Pure, but for the one question to a host and its engine; what cannot be asked is no warning.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence

from backends.compute.contract import Compute
from backends.compute.places import CudaVersion, HasCuda
from storage.errors import AshoreError

_PATIENCE = 10.0
_VERSION = re.compile(r"(\d{1,3})\.(\d{1,3})")
_REQUIRED = re.compile(r"cuda>=(\d{1,3})\.(\d{1,3})")


def wanted_cuda(variables: Sequence[str]) -> CudaVersion | None:
    """What an image was made for, by its variables `CUDA_VERSION=12.4.1` and `NVIDIA_REQUIRE_CUDA=cuda>=12.4 brand=…`,
    which NVIDIA's images have, and those made from them."""
    known = dict(variable.partition("=")[::2] for variable in variables)
    found = [
        (int(match[1]), int(match[2]))
        for match in (
            _VERSION.match(known.get("CUDA_VERSION", "")), _REQUIRED.search(known.get("NVIDIA_REQUIRE_CUDA", "")),
        )
        if match
    ]  # fmt: skip
    return max(found, default=None)


async def cuda_warnings(computes: Mapping[str, Compute], place: str, image: str) -> Sequence[str]:
    """What must be known before `image` is used with GPUs of this host. An image that the host lacks is not known."""
    compute = computes.get(place)
    if not isinstance(compute, HasCuda):
        return []
    try:
        async with asyncio.timeout(_PATIENCE):
            driver = await compute.driver()
            wanted = wanted_cuda(await compute.image_variables(image)) if driver is not None else None
    except (AshoreError, TimeoutError):
        return []
    if driver is None or driver.cuda is None or wanted is None or wanted <= driver.cuda:
        return []
    return [f"the image is made for CUDA {words_of(wanted)}, and its host's driver knows CUDA {words_of(driver.cuda)}"]


def words_of(version: CudaVersion) -> str:
    """`12.4`."""
    return f"{version[0]}.{version[1]}"
