"""Kinds of statements of a script: which say nothing of a run, which set variables, which write files."""

from __future__ import annotations

import re

STRUCTURE = re.compile(
    r"^(?:fi|done|esac|else|then|do|[(){};]+|[)}]\s*else(?:\s*if\b.*)?\s*[({]?|if\b.*[({]|:[\w.-]+)?$", re.I | re.S
)
# statements that set variables in another way: all their words may be names
SETS = re.compile(
    r"^\s*(?:(?:read|mapfile|readarray|printf\s+-v|let|unset|getopts|for|select|while|param|set-variable)\b|set\s+--"
    r"|set\s+/[ap]\b|\(\(|\w+\[.*?\]\s*\+?=|\[\w+\]\s*\$)",
    re.IGNORECASE,
)
SETS_INSIDE = re.compile(r"(?<![-\w.])\$?(?:env:|script:|global:)?([A-Za-z_]\w*)\s*\+?=(?!=)")
SETS_UP = re.compile(r"activate|conda|bashrc|profile|setvars|vcvars|nvm|^:", re.IGNORECASE)
WRITES = re.compile(
    r"(?<![2&])>>?\s*(?!&|/dev/|nul\b|\$null)"
    r"|^\s*(?:sudo\s+)?(?:tee|cp|mv|copy|move|ln|(?:sed|perl|yq)\s.*-i|wget|curl|aria2c)\b",
    re.IGNORECASE,
)
# programs whose arguments are names of files, of processes or plain text: a trainer among them is not run
_NAMERS = frozenset(
    "[ [[ : true false test rm ls dir cp mv chmod git grep pgrep pkill killall kill ps cat head tail less echo printf "
    "which where "
    "mkdir cd touch wc find tar zip scp rsync write-host test-path".split()
)
# programs that set nothing of a run
_PROGRAMS = _NAMERS | frozenset(
    "out-file out-host tee-object choice "
    "awk sed seq shutdown poweroff reboot yes try catch finally "
    "md pwd sleep timeout wait date trap shift return break continue nvidia-smi nvcc free df du uname "
    "hostname whoami type command hash ulimit umask module ml chown del rmdir rd pip pip3 conda mamba micromamba apt "
    "apt-get brew yum dnf deactivate activate egrep more sort uniq cut tr htop watch clear cls title color chcp ping "
    "goto tput stat realpath basename dirname unzip 7z aws gsutil rclone huggingface-cli hf wandb tensorboard ray curl "
    "wget aria2c copy xcopy move robocopy ln tee ffmpeg ffprobe local export shopt alias disown fg bg jobs exit pushd "
    "popd logout sync write-output write-error start-sleep set-location new-item remove-item get-location "
    "push-location pop-location get-childitem copy-item move-item invoke-webrequest out-null start-transcript "
    "stop-transcript set-strictmode set-executionpolicy".split()
)
_OTHERS = re.compile(
    r"^(?:[\d&]*[<>]|\(?\s*(?:-not\s+)?\$(?:LASTEXITCODE\b|\?)|\}?\s*(?:catch|finally)\b|poetry\s+install|uv\s+(?:pip|sync|venv)|xargs\s+kill|python[\d.]*(?:\.exe)?\s+"
    r"(?:-m\s+(?:venv|pip|virtualenv|ensurepip)|--version|-V|-c\s+(?!.*(?:open|write|dump|copy|move|save))[\"']))",
    re.IGNORECASE | re.DOTALL,
)
_SUDO = re.compile(r"^\s*sudo\s+(?:-\S+\s+)*")


def is_harmless(body: str) -> bool:
    """Whether a statement runs a program whose output and whose files no setting of a run comes from."""
    body = _SUDO.sub("", body.strip())
    return _first(body) in _PROGRAMS or _OTHERS.match(body) is not None


def only_names(body: str) -> bool:
    """Whether a statement runs nothing that its arguments name."""
    return _first(_SUDO.sub("", body.strip())) in _NAMERS


def _first(body: str) -> str:
    words = body.split(maxsplit=1)
    return words[0].lower().removesuffix(".exe") if words else ""
