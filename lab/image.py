# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The image of a lab node: this machine's own distribution with what a Spark has installed.

It is built by mmdebstrap from the apt sources of this machine, so no image registry is needed, and kept
under a digest of its recipe, so that it is built again only when the recipe changes.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

from lab.common import LabError, cache_dir, main_guard, run, say

REPOSITORY = "localhost/sparkrig-node"

# What the collection needs on a node, all of it present on DGX OS.
BASE_PACKAGES = (
    "ca-certificates",
    "dbus",
    "ethtool",
    "iproute2",
    "iputils-ping",
    "libnuma1",
    "netplan.io",
    "nftables",
    "openssh-server",
    "procps",
    "python3",
    "rsync",
    "sudo",
    "systemd",
    "systemd-sysv",
)
# The desktop that a Spark comes with: what os_prune is for.
DESKTOP_PACKAGES = (
    "avahi-daemon",
    "bluez",
    "colord",
    "cups",
    "cups-browsed",
    "earlyoom",
    "fwupd",
    "greetd",
    "modemmanager",
    "network-manager",
    "packagekit",
    "pipewire",
    "pipewire-pulse",
    "plymouth",
    "polkitd",
    "rtkit",
    "snapd",
    "switcheroo-control",
    "udisks2",
    "unattended-upgrades",
    "upower",
    "wireplumber",
    "xdg-desktop-portal",
)

# A privileged container has a writable /sys, and networkd then waits for a udev that is not there.
SYSFS_UNIT = """\
[Unit]
Description=Mount /sys read-only, as systemd expects it in a container
DefaultDependencies=no
Before=systemd-networkd.service NetworkManager.service sysinit.target
[Service]
Type=oneshot
ExecStart=/bin/mount -o remount,ro /sys
[Install]
WantedBy=sysinit.target
"""

# Every node makes host keys of its own at its first start; the image has none.
SSH_DROP_IN = """\
[Service]
ExecStartPre=
ExecStartPre=/usr/bin/ssh-keygen -A
ExecStartPre=/usr/sbin/sshd -t
"""

# A container has no screen: the display manager is installed and enabled, and its unit keeps a process that waits.
GREETD_DROP_IN = """\
[Service]
ExecStart=
ExecStart=/usr/bin/sleep infinity
"""

# Its address comes from `make up`; NetworkManager would take the link over, and its address away, at some boots.
MANAGEMENT_LINK = """\
[device-eth0]
match-device=interface-name:eth0
managed=0
"""

MASKED_UNITS = (
    # No device manager and no terminal exists in a container.
    "systemd-udevd.service",
    "systemd-udevd-control.socket",
    "systemd-udevd-kernel.socket",
    # Whether it ran would depend on whether /sys is read-only by then.
    "systemd-udev-trigger.service",
    "console-getty.service",
    "getty.target",
    # They wait for an address that only a machine with an uplink gets.
    "systemd-networkd-wait-online.service",
    "NetworkManager-wait-online.service",
    # apt has nothing to fetch from here.
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
)


def customize_script() -> str:
    """The shell lines that mmdebstrap runs on the new root file system, which is ``$1``."""
    masks = " ".join(MASKED_UNITS)
    return f"""set -e
cat > "$1/etc/systemd/system/lab-sysfs-readonly.service" <<'UNIT'
{SYSFS_UNIT}UNIT
mkdir -p "$1/etc/systemd/system/ssh.service.d"
cat > "$1/etc/systemd/system/ssh.service.d/host-keys.conf" <<'UNIT'
{SSH_DROP_IN}UNIT
mkdir -p "$1/etc/systemd/system/greetd.service.d"
cat > "$1/etc/systemd/system/greetd.service.d/no-screen.conf" <<'UNIT'
{GREETD_DROP_IN}UNIT
cat > "$1/etc/NetworkManager/conf.d/10-management-link.conf" <<'CONF'
{MANAGEMENT_LINK}CONF
rm -f "$1"/etc/ssh/ssh_host_*
chroot "$1" systemctl enable lab-sysfs-readonly.service ssh.service greetd.service
chroot "$1" systemctl mask {masks}
chroot "$1" useradd --create-home --shell /bin/bash spark
echo 'spark ALL=(ALL) NOPASSWD: ALL' > "$1/etc/sudoers.d/spark"
chmod 0440 "$1/etc/sudoers.d/spark"
: > "$1/etc/machine-id"
rm -rf "$1"/var/cache/apt/archives/*.deb "$1"/var/lib/apt/lists/*
"""


def suite() -> str:
    """The code name of this machine's distribution, which the node gets as well."""
    for line in Path("/etc/os-release").read_text(encoding="utf-8").splitlines():
        key, _, value = line.partition("=")
        if key == "VERSION_CODENAME":
            return value.strip('"')
    raise LabError("/etc/os-release names no VERSION_CODENAME: the lab needs a Debian or Ubuntu machine.")


def apt_sources() -> list[Path]:
    """The apt sources of this machine, whatever they are called."""
    found = sorted(Path("/etc/apt/sources.list.d").glob("*.sources"))
    found += sorted(Path("/etc/apt/sources.list.d").glob("*.list"))
    classic = Path("/etc/apt/sources.list")
    if classic.is_file() and classic.read_text(encoding="utf-8").strip():
        found.append(classic)
    if not found:
        raise LabError("no apt source was found under /etc/apt: the lab's image is built from this machine's own.")
    return found


def recipe_digest() -> str:
    """A digest of everything that makes the image: packages, suite, sources and customisation."""
    recipe = {
        "customize": customize_script(),
        "packages": sorted(BASE_PACKAGES + DESKTOP_PACKAGES),
        "sources": [path.read_text(encoding="utf-8") for path in apt_sources()],
        "suite": suite(),
    }
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:12]


def image_name() -> str:
    """The image's name and tag in podman's store."""
    return f"{REPOSITORY}:{recipe_digest()}"


def build_rootfs(target: Path) -> None:
    """Write the root file system as a tar archive to *target*, all of it or nothing."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".building-") as scratch:
        os.chmod(scratch, 0o755)
        partial = Path(scratch) / "rootfs.tar"
        hook = Path(scratch) / "customize.sh"
        hook.write_text(customize_script(), encoding="utf-8")
        run(
            [
                "mmdebstrap",
                "--quiet",
                "--variant=minbase",
                f"--include={','.join(BASE_PACKAGES + DESKTOP_PACKAGES)}",
                '--aptopt=Apt::Install-Recommends "false"',
                f'--customize-hook=sh {hook} "$1"',
                "--dpkgopt=force-unsafe-io",
                "--dpkgopt=path-exclude=/usr/share/man/*",
                "--dpkgopt=path-exclude=/usr/share/doc/*",
                "--dpkgopt=path-exclude=/usr/share/locale/*",
                suite(),
                str(partial),
                *[str(path) for path in apt_sources()],
            ]
        )
        os.replace(partial, target)


def ensure_image() -> str:
    """Make sure that podman has the image of the current recipe, and return its name."""
    name = image_name()
    if run(["podman", "image", "exists", name], check=False).returncode == 0:
        return name
    archive = cache_dir() / "image" / f"{recipe_digest()}.tar"
    if not archive.is_file():
        if shutil.which("mmdebstrap") is None:
            raise LabError("mmdebstrap is not installed: apt-get install mmdebstrap")
        say(f"building the node image from this machine's apt sources ({suite()}, about a minute and a half)")
        started = time.monotonic()
        build_rootfs(archive)
        say(f"image built in {time.monotonic() - started:.0f} s, {archive.stat().st_size / 2**20:.0f} MiB")
    run(
        [
            "podman",
            "import",
            "--quiet",
            "--change",
            'CMD ["/sbin/init"]',
            "--change",
            "STOPSIGNAL SIGRTMIN+3",
            str(archive),
            name,
        ]
    )
    return name


def remove_images() -> None:
    """Take every image of a node out of podman's store."""
    if shutil.which("podman") is not None:
        listed = run(["podman", "images", "--quiet", "--filter", f"reference={REPOSITORY}"]).stdout.decode().split()
        if listed:
            run(["podman", "rmi", *listed])


def main() -> None:
    """``python -m lab.image [--remove]``."""
    if sys.argv[1:] == ["--remove"]:
        remove_images()
    else:
        print(ensure_image())


if __name__ == "__main__":
    main_guard(main)
