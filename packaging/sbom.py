#!/usr/bin/env python3
"""Prints the software bill of materials of the binary (CycloneDX 1.5), or a list of licences with --licences.

Both come from `cargo metadata --locked`: what the binary is linked from on Linux, without what only tests and builds use.
"""
import json
import re
import subprocess
import sys
import uuid

TARGET = "x86_64-unknown-linux-gnu"


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


def main():
    root, libraries = linked()
    if sys.argv[1:] == ["--licences"]:
        print(f"walden {root['version']}: {root['license']}\n\nLinked into it:\n")
        for package in libraries:
            print(f"{package['name']} {package['version']}: {package['license'] or 'see its files'}")
        return
    bom = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        # The same for the same list, so that a release can be made again.
        "serialNumber": "urn:uuid:" + str(uuid.uuid5(uuid.NAMESPACE_URL, json.dumps([p["id"] for p in libraries]))),
        "version": 1,
        "metadata": {"component": component(root, "application")},
        "components": [component(package) for package in libraries],
    }
    json.dump(bom, sys.stdout, indent=1)
    print()


main()
