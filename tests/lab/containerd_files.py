"""containerd's configurations, and what three versions of it make of them (``containerd config dump``)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

VERSIONS = {"16": "1.6.20~ds1", "17": "1.7.24~ds1", "21": "2.1.9+unknown"}
"""Of the daemons of ``parts.CONTAINERDS``."""

WORDS = {
    "IMPORTS": 'imports = ["conf.d/*.toml"]',
    "CRI": 'plugins."io.containerd.grpc.v1.cri"',
    "IMAGES": 'plugins."io.containerd.cri.v1.images"',
    "DISCARD": "discard_unpacked_layers = true",
}


@dataclass(frozen=True, slots=True)
class Files:
    """A configuration. ``expected``: what 1.6, 1.7 and 2.1 make of it; ``conf_d``: the files in conf.d.

    The words of ``expected`` are config_path (``none`` without one) and ``mirrors``, ``tls``, ``discards`` and
    ``local`` if they are set, or ``refused`` or ``disabled``. Words in capitals are written out, see ``WORDS``;
    HERE is the directory of the files.
    """

    expected: tuple[str, str, str]
    main: str
    conf_d: Mapping[str, str] = field(default_factory=dict)

    def write(self, directory: Path) -> Path:
        """Write the files. Returns the path of the first one."""
        (directory / "conf.d").mkdir()
        for name, text in {"../config.toml": self.main, **self.conf_d}.items():
            for word, meaning in {**WORDS, "HERE": str(directory)}.items():
                text = text.replace(word, meaning)
            (directory / "conf.d" / name).write_text(text)
        return directory / "config.toml"


FILES = {
    "version 2": Files(("/a", "/a", "/a"), 'version = 2\n[CRI.registry]\nconfig_path = "/a"\n'),
    "no version": Files(("/a", "/a", "none"), '[plugins.cri.registry]\nconfig_path = "/a"\n'),
    "version 1": Files(("/a", "/a", "none"), 'version = 1\n[plugins.cri.registry]\nconfig_path = "/a"\n'),
    "no version, the table's full name": Files(("none", "none", "none"), '[CRI.registry]\nconfig_path = "/a"\n'),
    "version 2, the table's short name": Files(
        ("refused", "refused", "none"), 'version = 2\n[plugins.cri.registry]\nconfig_path = "/a"\n'
    ),
    "version 3": Files(("none", "refused", "/a"), 'version = 3\n[IMAGES.registry]\nconfig_path = "/a"\n'),
    "version 3, the old table": Files(("/a", "refused", "none"), 'version = 3\n[CRI.registry]\nconfig_path = "/a"\n'),
    "version 2, the new table": Files(("none", "none", "/a"), 'version = 2\n[IMAGES.registry]\nconfig_path = "/a"\n'),
    "version 2, both tables": Files(
        ("/a", "/a", "/a"), 'version = 2\n[CRI.registry]\nconfig_path = "/a"\n[IMAGES.registry]\nconfig_path = "/b"\n'
    ),
    "version 4": Files(("none", "refused", "refused"), 'version = 4\n[IMAGES.registry]\nconfig_path = "/a"\n'),
    "version 2 with a file sets": Files(
        ("/a", "/a", "/a"), "IMPORTS\nversion = 2\n", {"a.toml": 'version = 2\n[CRI.registry]\nconfig_path = "/a"\n'}
    ),
    "version 2 with a file other section": Files(
        ("none", "none", "/a discards local"),
        'IMPORTS\nversion = 2\n[CRI.registry]\nconfig_path = "/a"\n[CRI.containerd]\nDISCARD\n',
        {"a.toml": 'version = 2\n[CRI.containerd.runtimes.nvidia]\nruntime_type = "io.containerd.runc.v2"\n'},
    ),
    "version 2 with a file noversion": Files(
        ("/a", "/a", "/a"),
        "IMPORTS\nversion = 2\n[CRI.containerd]\nDISCARD\n",
        {"a.toml": '[CRI.registry]\nconfig_path = "/a"\n'},
    ),
    "version 2 with a file version 1 short": Files(
        ("refused", "refused", "/a"),
        "IMPORTS\nversion = 2\n",
        {"a.toml": '[plugins.cri.registry]\nconfig_path = "/a"\n'},
    ),
    "version 1 with a file version 2": Files(
        ("refused", "refused", "/b"),
        'IMPORTS\n[plugins.cri.registry]\nconfig_path = "/a"\n',
        {"a.toml": 'version = 2\n[CRI.registry]\nconfig_path = "/b"\n'},
    ),
    "version 2 two files": Files(
        ("/b", "/b", "/b"),
        "IMPORTS\nversion = 2\n",
        {
            "a.toml": 'version = 2\n[CRI.registry]\nconfig_path = "/a"\n',
            "b.toml": 'version = 2\n[CRI.registry]\nconfig_path = "/b"\n',
        },
    ),
    "version 2 two files halves": Files(
        ("none discards", "none discards", "/a"),
        "IMPORTS\nversion = 2\n",
        {
            "a.toml": 'version = 2\n[CRI.registry]\nconfig_path = "/a"\n',
            "b.toml": "version = 2\n[CRI.containerd]\nDISCARD\n",
        },
    ),
    "version 3 with a file version 2 nvidia": Files(
        ("none", "none", "/a"),
        'IMPORTS\nversion = 3\n[IMAGES.registry]\nconfig_path = "/a"\n',
        {"a.toml": 'version = 2\n[CRI.containerd.runtimes.nvidia]\nruntime_type = "io.containerd.runc.v2"\n'},
    ),
    "version 3 with a file version 2 path": Files(
        ("/b", "/b", "/b"),
        'IMPORTS\nversion = 3\n[IMAGES.registry]\nconfig_path = "/a"\n',
        {"a.toml": 'version = 2\n[CRI.registry]\nconfig_path = "/b"\n'},
    ),
    "version 3 with a file noversion uri": Files(
        ("/b", "refused", "/a"),
        'IMPORTS\nversion = 3\n[IMAGES.registry]\nconfig_path = "/a"\n',
        {"a.toml": '[CRI.registry]\nconfig_path = "/b"\n'},
    ),
    "version 3 with a file noversion new": Files(
        ("none", "refused", "/b"), "IMPORTS\nversion = 3\n", {"a.toml": '[IMAGES.registry]\nconfig_path = "/b"\n'}
    ),
    "version 3 with a file version 3 discard": Files(
        ("none", "refused", "/a discards local"),
        'IMPORTS\nversion = 3\n[IMAGES.registry]\nconfig_path = "/a"\n',
        {"a.toml": "version = 3\n[IMAGES]\nDISCARD\n"},
    ),
    "version 3 discard then false": Files(
        ("none", "refused", "none"),
        "IMPORTS\nversion = 3\n[IMAGES]\nDISCARD\n",
        {"a.toml": "version = 3\n[IMAGES]\ndiscard_unpacked_layers = false\n"},
    ),
    "version 3 path then empty": Files(
        ("none", "refused", "none"),
        'IMPORTS\nversion = 3\n[IMAGES.registry]\nconfig_path = "/a"\n',
        {"a.toml": 'version = 3\n[IMAGES.registry]\nconfig_path = ""\n'},
    ),
    "version 2 path then empty": Files(
        ("none", "none", "none"),
        'IMPORTS\nversion = 2\n[CRI.registry]\nconfig_path = "/a"\n',
        {"a.toml": 'version = 2\n[CRI.registry]\nconfig_path = ""\n'},
    ),
    "version 2 discard then false": Files(
        ("none", "none", "none"),
        "IMPORTS\nversion = 2\n[CRI.containerd]\nDISCARD\n",
        {"a.toml": "version = 2\n[CRI.containerd]\ndiscard_unpacked_layers = false\n"},
    ),
    "version 2 with a file version 3": Files(
        ("/a", "refused", "/b"),
        'IMPORTS\nversion = 2\n[CRI.registry]\nconfig_path = "/a"\n',
        {"a.toml": 'version = 3\n[IMAGES.registry]\nconfig_path = "/b"\n'},
    ),
    "disabled joined version 2": Files(
        ("disabled", "disabled", "disabled"),
        'IMPORTS\nversion = 2\ndisabled_plugins = ["io.containerd.a.v1.b"]\n[CRI.registry]\nconfig_path = "/a"\n',
        {"a.toml": 'version = 2\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n'},
    ),
    "disabled then emptied version 2": Files(
        ("disabled", "disabled", "disabled"),
        'IMPORTS\nversion = 2\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n',
        {"a.toml": "version = 2\ndisabled_plugins = []\n"},
    ),
    "disabled short version 2": Files(("refused", "refused", "refused"), 'version = 2\ndisabled_plugins = ["cri"]\n'),
    "disabled short version 1": Files(("disabled", "disabled", "disabled"), 'disabled_plugins = ["cri"]\n'),
    "disabled images version 3": Files(
        ("none", "refused", "disabled"), 'version = 3\ndisabled_plugins = ["io.containerd.cri.v1.images"]\n'
    ),
    "disabled grpc version 3": Files(
        ("disabled", "refused", "disabled"), 'version = 3\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n'
    ),
    "disabled with a file version 1 main version 2": Files(
        ("refused", "refused", "disabled"), "IMPORTS\nversion = 2\n", {"a.toml": 'disabled_plugins = ["cri"]\n'}
    ),
    "disabled version 3 with a file version 1": Files(
        ("refused", "refused", "disabled"), "IMPORTS\nversion = 3\n", {"a.toml": 'disabled_plugins = ["cri"]\n'}
    ),
    "import nested": Files(
        ("/b", "/b", "/b"),
        "IMPORTS\nversion = 2\n",
        {
            "a.toml": 'imports = ["b.inc"]\nversion = 2\n[CRI.registry]\nconfig_path = "/a"\n',
            "b.inc": 'version = 2\n[CRI.registry]\nconfig_path = "/b"\n',
        },
    ),
    "import self": Files(
        ("/a", "/a", "/a"), 'imports = ["config.toml"]\nversion = 2\n[CRI.registry]\nconfig_path = "/a"\n'
    ),
    "import hidden": Files(
        ("/a", "/a", "/a"), "IMPORTS\nversion = 2\n", {".h.toml": 'version = 2\n[CRI.registry]\nconfig_path = "/a"\n'}
    ),
    "import recursive star": Files(
        ("/a", "/a", "/a"),
        'imports = ["**/*.toml"]\nversion = 2\n',
        {"a.toml": 'version = 2\n[CRI.registry]\nconfig_path = "/a"\n'},
    ),
    "import brace": Files(
        ("/a", "/a", "/a"),
        'imports = ["conf.d/[a-b]*.toml"]\nversion = 2\n',
        {"a.toml": 'version = 2\n[CRI.registry]\nconfig_path = "/a"\n'},
    ),
    "import twice wins later": Files(
        ("/a", "/a", "/a"),
        'imports = ["conf.d/b.toml","conf.d/a.toml"]\nversion = 2\n',
        {
            "a.toml": 'version = 2\n[CRI.registry]\nconfig_path = "/a"\n',
            "b.toml": 'version = 2\n[CRI.registry]\nconfig_path = "/b"\n',
        },
    ),
    "list path": Files(("/a:/b", "/a:/b", "/a:/b"), 'version = 2\n[CRI.registry]\nconfig_path = "/a:/b"\n'),
    "mirrors version 2": Files(
        ("none mirrors", "none mirrors", "none mirrors local"),
        'version = 2\n[CRI.registry.mirrors."docker.io"]\nendpoint = ["https://cache"]\n',
    ),
    "mirrors version 3": Files(
        ("none", "refused", "none mirrors local"),
        'version = 3\n[IMAGES.registry.mirrors."docker.io"]\nendpoint = ["https://cache"]\n',
    ),
    "mirrors main path with a file": Files(
        ("/a", "/a", "/a mirrors local"),
        'IMPORTS\nversion = 2\n[CRI.registry.mirrors."docker.io"]\nendpoint = ["https://cache"]\n',
        {"a.toml": 'version = 2\n[CRI.registry]\nconfig_path = "/a"\n'},
    ),
    "mirrors main path with a file version 3": Files(
        ("none", "refused", "/a mirrors local"),
        'IMPORTS\nversion = 3\n[IMAGES.registry.mirrors."docker.io"]\nendpoint = ["https://cache"]\n',
        {"a.toml": 'version = 3\n[IMAGES.registry]\nconfig_path = "/a"\n'},
    ),
    "local version 3": Files(
        ("none", "refused", "/a local"),
        "IMPORTS\nversion = 3\n[IMAGES]\nuse_local_image_pull = true\n",
        {"a.toml": 'version = 3\n[IMAGES.registry]\nconfig_path = "/a"\n'},
    ),
    "local by another setting": Files(
        ("/a", "/a", "/a local"),
        'version = 2\n[CRI]\nmax_concurrent_downloads = 10\n[CRI.registry]\nconfig_path = "/a"\n',
    ),
    "tls version 2": Files(
        ("/a tls", "/a tls", "/a local"),
        'version = 2\n[CRI.registry]\nconfig_path = "/a"\n[CRI.registry.configs."a".tls]\nca_file = "/ca.pem"\n',
    ),
    "tls version 3": Files(
        ("none", "refused", "none local"), 'version = 3\n[IMAGES.registry.configs."a".tls]\nca_file = "/ca.pem"\n'
    ),
    "empty": Files(("none", "none", "none"), ""),
    "bom": Files(("/a", "/a", "refused"), '\ufeffversion = 2\n[CRI.registry]\nconfig_path = "/a"\n'),
    "discard version 2 on images": Files(
        ("none discards", "none discards", "none"), "version = 2\n[CRI.containerd]\nDISCARD\n"
    ),
    "abs import": Files(
        ("/a", "/a", "/a"),
        'imports = ["HERE/conf.d/a.toml"]\nversion = 2\n',
        {"a.toml": 'version = 2\n[CRI.registry]\nconfig_path = "/a"\n'},
    ),
}
