#!/usr/bin/env python3
"""What the binary is made of.

    sbom.py                    the software bill of materials (CycloneDX 1.5)
    sbom.py --licences         a list of licences, and their texts
    sbom.py --check FILE       judges a bill of materials by CycloneDX's schema (needs the library of that name)

The first two come from `cargo metadata --locked`: what the binary is linked from on Linux, without what only tests and builds use.
"""
import json
import platform
import re
import subprocess
import sys
import uuid
from pathlib import Path

TARGET = platform.machine() + "-unknown-linux-gnu"
NOTICES = re.compile(r"(licen[cs]e|copying|copyright|notice|unlicense)", re.IGNORECASE)


def linked():
    """Returns the root package and every package that is linked into it, by name and version."""
    command = ["cargo", "metadata", "--locked", "--format-version", "1", "--filter-platform", TARGET]
    meta = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    packages = {package["id"]: package for package in meta["packages"]}
    nodes = {node["id"]: node for node in meta["resolve"]["nodes"]}
    root = next(p["id"] for p in meta["packages"] if p["name"] == "walden" and p["source"] is None)
    seen, waiting = set(), [root]
    while waiting:
        package = waiting.pop()
        if package in seen:
            continue
        seen.add(package)
        for dependency in nodes[package]["deps"]:
            # A kind of null is an ordinary dependency; "build" and "dev" are not in the binary.
            if any(kind["kind"] is None for kind in dependency["dep_kinds"]):
                waiting.append(dependency["pkg"])
    seen.discard(root)
    return packages[root], sorted((packages[p] for p in seen), key=lambda p: (p["name"], p["version"]))


def folder(package):
    return Path(package["manifest_path"]).parent


def zig():
    """Returns the folder of the zig that has linked target/dist/walden, if zig has."""
    binary = Path("target/dist/walden")
    # Elsewhere the unwinder is the system's libgcc_s.
    if not binary.exists() or b"libunwind" not in binary.read_bytes():
        return None
    found = next(Path("target/tools/lib").glob("python3*/site-packages/ziglang"), None)
    return found or sys.exit("target/dist/walden was linked by a zig that is not in target/tools any more")


def not_crates(libraries):
    """Returns what is linked in and is no crate: SQLite, which a crate brings along, Rust's own library, and what zig adds."""
    sqlite = next(package for package in libraries if package["name"] == "libsqlite3-sys")
    header = (folder(sqlite) / "sqlite3" / "sqlite3.h").read_text()
    version = re.search(r'#define SQLITE_VERSION\s+"([^"]+)"', header).group(1)
    rust = subprocess.run(["rustc", "--version"], check=True, capture_output=True, text=True).stdout.split()[1]
    found = [
        ("sqlite", version, f"pkg:generic/sqlite@{version}", "blessing", "A small, fast SQL database engine"),
        ("rust-std", rust, f"pkg:generic/rust@{rust}", "MIT OR Apache-2.0", "The Rust standard library"),
    ]
    if zig():
        information = next(zig().parent.glob("ziglang-*.dist-info")).name
        version = information.removeprefix("ziglang-").removesuffix(".dist-info")
        licence = "MIT AND Apache-2.0 WITH LLVM-exception"
        found.append(("ziglang", version, f"pkg:pypi/ziglang@{version}", licence, "Start-up code, LLVM's libunwind and compiler-rt"))
    return found


def component(package, kind="library"):
    found = {
        "type": kind,
        "bom-ref": f"pkg:cargo/{package['name']}@{package['version']}",
        "name": package["name"],
        "version": package["version"],
        "purl": f"pkg:cargo/{package['name']}@{package['version']}",
    }
    if package["license"]:
        # Old manifests write a slash for "or".
        found["licenses"] = [{"expression": re.sub(r"\s*/\s*", " OR ", package["license"])}]
    if package["description"]:
        found["description"] = " ".join(package["description"].split())
    return found


def bill():
    """Returns the bill of materials."""
    root, libraries = linked()
    others = [
        {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl,
         "licenses": [{"expression": licence}], "description": description}
        for name, version, purl, licence, description in not_crates(libraries)
    ]
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        # The same for the same list, so that a release can be made again.
        "serialNumber": "urn:uuid:" + str(uuid.uuid5(uuid.NAMESPACE_URL, json.dumps([p["id"] for p in libraries]))),
        "version": 1,
        "metadata": {"component": component(root, "application")},
        "components": [component(package) for package in libraries] + others,
    }


def licences():
    """Prints each package with its licence, then each licence text with the packages that come with it."""
    root, libraries = linked()
    print(f"walden {root['version']}: {root['license']}\n\nLinked into it:\n")
    texts = {}
    for package in libraries:
        name = f"{package['name']} {package['version']}"
        files = sorted(file for file in folder(package).iterdir() if NOTICES.match(file.name) and file.is_file())
        elsewhere = "" if files else f" (the text is not in its package; see {package['repository']})"
        print(f"{name}: {package['license'] or 'see its files'}{elsewhere}")
        for file in files:
            text = "\n".join(line.rstrip() for line in file.read_text(errors="replace").strip().splitlines())
            texts.setdefault(text, []).append(name)
    for name, version, _, licence, _ in not_crates(libraries):
        print(f"{name} {version}: {'public domain' if licence == 'blessing' else licence}")
    for name in ["LICENSE", "lib/libunwind/LICENSE.TXT"] if zig() else []:
        texts.setdefault((zig() / name).read_text().strip(), []).append("ziglang")
    for text, names in sorted(texts.items(), key=lambda item: item[1]):
        print(f"\n{'=' * 100}\n{', '.join(dict.fromkeys(names))}\n{'-' * 100}\n{text}")


def check(path):
    """Ends with an error where the file is not what CycloneDX says a bill of materials is."""
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    wrong = JsonStrictValidator(SchemaVersion.V1_5).validate_str(Path(path).read_text())
    if wrong:
        sys.exit(f"{path}: {str(wrong).splitlines()[0]}")


def main():
    match sys.argv[1:]:
        case []:
            json.dump(bill(), sys.stdout, indent=1)
            print()
        case ["--licences"]:
            licences()
        case ["--check", path]:
            check(path)
        case _:
            sys.exit(__doc__)


main()
