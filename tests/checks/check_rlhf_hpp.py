"""rlhf.hpp includes every header but backends and details, and nothing that is not there."""

import re
from house import finish, headers, include

listing = (include / "rlhf.hpp").read_text(encoding="utf-8")
listed = re.findall(r'#include\s+[<"]rlhf/([^>"]+)[>"]', listing)
wanted = [h for h in headers() if h != "rlhf.hpp" and not re.match(r"backend/|.*/detail/", h)]
finish(
    [f"rlhf.hpp lacks {h}" for h in wanted if h not in listed]
    + [f"rlhf.hpp includes {h}, which is not a header for it" for h in listed if h not in wanted]
    + [f"rlhf.hpp includes {h} twice" for h in sorted(set(listed)) if listed.count(h) > 1],
    f"{len(listed)} headers",
)
