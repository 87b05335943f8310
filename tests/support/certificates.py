"""Certificates of test servers and clients."""

import subprocess
from pathlib import Path


def make_certificate(stem: Path, *names: str) -> Path:
    """A key and a self-signed certificate, `stem`.key and .crt, for 127.0.0.1 and these host names."""
    stem.parent.mkdir(exist_ok=True)
    alternatives = ",".join(["IP:127.0.0.1", *(f"DNS:{name}" for name in names)])
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
            *("-days", "2", "-subj", f"/CN={stem.name}", "-addext", f"subjectAltName={alternatives}"),
            *("-keyout", str(stem.with_suffix(".key")), "-out", str(stem.with_suffix(".crt"))),
        ],
        check=True,
        capture_output=True,
    )
    return stem
