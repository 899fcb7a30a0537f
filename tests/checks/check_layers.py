"""Includes run downwards only, and other people's tensors appear under backend/ alone."""

import re
from house import ROOMS, finish, headers, include

LEVEL = {"core": 0, "math": 1, "tensor": 1, "primitive": 2, "statistics": 3, "backend": 3}
LEVEL.update({room: 4 for room in ROOMS if room != "statistics"})
INCLUDE = re.compile(r'^\s*#\s*include\s+[<"]([^>"]+)[>"]', re.M)
FOREIGN = re.compile(r"^(Eigen|unsupported|xtensor|xtl|thrust|cub|cuda|tbb|oneapi|omp\.h|cuda_)")


def room_of(header):
    return header.split("/")[0] if "/" in header else None


complaints = []
for header in headers():
    room = room_of(header)
    if room is None:
        continue
    if room not in LEVEL:
        complaints.append(f"{header} stands in a room that the house does not have")
        continue
    for target in INCLUDE.findall((include / header).read_text(encoding="utf-8")):
        if FOREIGN.match(target) and room != "backend":
            complaints.append(f"{header} includes {target}, which belongs under backend/")
        if not target.startswith("rlhf/"):
            continue
        other = room_of(target[5:])
        if other is None or other == room:
            if target == "rlhf/rlhf.hpp":
                complaints.append(f"{header} includes rlhf.hpp")
            continue
        down = LEVEL.get(other, 9) < LEVEL[room]
        beside = LEVEL.get(other) == LEVEL[room] == 4
        if not (down or beside) or "backend" in (room, other) and "statistics" in (room, other):
            complaints.append(f"{header} includes {target}: that is not downwards")
finish(complaints, f"{len(headers())} headers")
