"""What the product is made of, as CycloneDX 1.5: ``.ci/bill_of_materials.py VERSION``.

The packages are those of requirements/run.txt, in their exact versions. The image has its own, which names Debian's
packages too: BuildKit makes it.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def bill(version: str) -> dict[str, object]:
    packages = re.findall(r"^([\w.-]+)==(\S+)", (ROOT / "requirements/run.txt").read_text(), re.MULTILINE)
    root = f"pkg:pypi/spegel-consul@{version}"
    parts = [
        {
            "type": "library",
            "bom-ref": f"pkg:pypi/{name}@{exact}",
            "name": name,
            "version": exact,
            "purl": f"pkg:pypi/{name}@{exact}",
        }
        for name, exact in packages
    ]
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "component": {
                "type": "application",
                "bom-ref": root,
                "name": "spegel-consul",
                "version": version,
                "purl": root,
                "licenses": [{"license": {"id": "MIT"}}],
            }
        },
        "components": parts,
        "dependencies": [{"ref": root, "dependsOn": [part["bom-ref"] for part in parts]}],
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(bill(sys.argv[1]), indent=1) + "\n")
