"""A headless Chromium, driven over the WebDriver protocol."""

import base64
import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


class Browser:
    """One tab."""

    def __init__(self, address: str):
        self.address = address

    def post(self, path: str, **content: Any) -> Any:
        request = urllib.request.Request(
            f"{self.address}/{path}".rstrip("/"),
            json.dumps(content).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.load(answer)["value"]

    def open(self, page: Path) -> None:
        self.post("url", url=page.absolute().as_uri())

    def run(self, script: str, *arguments: Any) -> Any:
        """The value of ``return ...`` in the page."""
        return self.post("execute/sync", script=script, args=list(arguments))

    def devtools(self, command: str, **arguments: Any) -> Any:
        return self.post("goog/cdp/execute", cmd=command, params=arguments)

    def resize(self, width: int, height: int, *, phone: bool = False) -> None:
        self.devtools(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2 if phone else 1,
            mobile=phone,
        )

    def theme(self, name: str) -> None:
        feature = {"name": "prefers-color-scheme", "value": name}
        self.devtools("Emulation.setEmulatedMedia", features=[feature])

    def log(self) -> list[dict[str, Any]]:
        """What the console has shown since it was last asked."""
        return self.post("se/log", type="browser")

    def picture(self, file: Path, *, whole: bool = False) -> None:
        drawn = self.devtools("Page.captureScreenshot", captureBeyondViewport=whole)
        file.write_bytes(base64.b64decode(drawn["data"]))


@contextmanager
def chromium(profile: Path) -> Iterator[Browser]:
    """Starts a browser with a profile of its own."""
    driver, browser = shutil.which("chromedriver"), shutil.which("chromium")
    assert driver and browser
    process = subprocess.Popen(
        [driver, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert process.stdout is not None
        port = ""
        for line in process.stdout:
            if "started successfully on port" in line:
                port = line.rsplit(" ", 1)[1].strip().rstrip(".")
                break
        address = f"http://127.0.0.1:{port}"
        options = {"binary": browser, "args": [*FLAGS, f"--user-data-dir={profile}"]}
        prefs = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        wanted = {"alwaysMatch": prefs}
        deadline = time.monotonic() + 60
        while True:
            try:
                session = Browser(f"{address}/session").post("", capabilities=wanted)
                break
            except ConnectionError:
                assert time.monotonic() < deadline
        tab = Browser(f"{address}/session/{session['sessionId']}")
        try:
            yield tab
        finally:
            request = urllib.request.Request(tab.address, method="DELETE")
            urllib.request.urlopen(request, timeout=60).close()
    finally:
        process.terminate()
        process.communicate()
