"""Images at http addresses: read once, in bounded time and bytes, and not from this network unless asked for."""

import contextlib
import http.server
import socket
import threading
import time

import pytest
from image_helpers import message, picture, png

from mmcot.processing import ProblemError, image_reading_mmcot, load_image, load_images, read_image_bytes


class Server(http.server.ThreadingHTTPServer):
    """Answers each path with a function (handler -> None); `asked` holds the paths."""

    def __init__(self, **pages):
        outer = self
        self.asked, self.pages = [], pages

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                outer.asked.append(self.path)
                outer.pages[self.path.strip("/").partition("?")[0]](self)

            def log_message(self, *args):
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *args):
        self.shutdown()
        super().__exit__(*args)

    def handle_error(self, *args):  # a client that hung up
        pass


def answer(content=b"", status=200, **headers):
    def send(handler):
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(content)

    return send


def drip(pause=0.05, headers=True):
    """Sends a byte now and then, for ever."""

    def send(handler):
        if headers:
            answer()(handler)
        with contextlib.suppress(OSError):
            while True:
                handler.wfile.write(b"x")
                time.sleep(pause)

    return send


@pytest.fixture
def local(monkeypatch):
    monkeypatch.setenv("MMCOT_ALLOW_PRIVATE_URLS", "1")


def test_a_url_is_read_once(local):
    with Server(image=answer(png(picture()))) as server:
        assert load_image(f"{server.url}/image?a=b c&d=ü").tobytes() == picture().tobytes()
        assert server.asked == ["/image?a=b%20c&d=%C3%BC"]
        assert read_image_bytes(f"HTTP{server.url[4:]}/image") == png(picture())
        with pytest.raises(ProblemError, match=f"problem 3: cannot read image '{server.url}/gone': .*404 Not Found"):
            server.pages["gone"] = answer(status=404)
            load_images({"id": 3, "image": f"{server.url}/gone"})


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0", "[::1]", "[::ffff:127.0.0.1]", "10.0.0.7"])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_addresses_of_this_network_only_when_asked_for(host, scheme, monkeypatch):
    def never(*args):
        raise AssertionError("connected")

    monkeypatch.setattr(socket.socket, "connect", never)
    monkeypatch.delenv("MMCOT_ALLOW_PRIVATE_URLS", raising=False)
    url = f"{scheme}://{host}:9/x.png"
    for said in (message(url), message(url, allow_private=False)):
        assert "MMCOT_ALLOW_PRIVATE_URLS=1" in said
    monkeypatch.setenv("MMCOT_ALLOW_PRIVATE_URLS", "0")
    assert "MMCOT_ALLOW_PRIVATE_URLS=1" in message(url)
    assert "connected" in message(url, allow_private=True)


@pytest.mark.parametrize(
    "address", ["169.254.169.254", "192.168.1.1", "172.16.0.1", "100.64.0.1", "fd00::1", "224.0.0.1"]
)
def test_what_a_name_stands_for_is_looked_at(address, monkeypatch):
    """And it is what is connected to: another look-up could tell another address."""
    looked, connected = [], []

    def look_up(host, port, **kwargs):
        looked.append(host)
        family = socket.AF_INET6 if ":" in address_now else socket.AF_INET
        return [(family, socket.SOCK_STREAM, 6, "", (address_now, port))]

    def connect(self, address):
        connected.append(address)
        raise ConnectionRefusedError(111, "refused")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setattr(socket.socket, "connect", connect)
    address_now = address
    assert "pictures.example is an address of this machine" in message("http://pictures.example/x.png")
    assert not connected
    address_now = "93.184.215.14"
    assert "refused" in message("https://pictures.example:444/x.png")
    assert connected == [("93.184.215.14", 444)] and looked == ["pictures.example"] * 2


def test_redirects_are_looked_at_again(local, monkeypatch):
    with Server(image=answer(png(picture()))) as server:
        for status in (301, 302, 303, 307, 308):
            server.pages["moved"] = answer(status=status, Location="/image")
            assert load_image(f"{server.url}/moved").size == (40, 30)
        for place, said in (
            ("file:///etc/hostname", "not file"),
            ("ftp://example.org/x", "not ftp"),
            ("data:image/png;base64,eA==", "not data"),
            ("/moved", "more than 5 redirects"),
        ):
            server.pages["moved"] = answer(status=302, Location=place)
            assert said in message(f"{server.url}/moved")
        server.pages["moved"] = answer(status=302)
        assert "302" in message(f"{server.url}/moved")
        # from an address that is allowed to one that isn't
        server.pages["moved"] = answer(status=302, Location=f"http://localhost:{server.server_port}/image")
        real = image_reading_mmcot._connect
        checked = []

        def connect(host, port, allow_private):
            checked.append(host)
            return real(host, port, allow_private=host == "127.0.0.1")

        monkeypatch.setattr(image_reading_mmcot, "_connect", connect)
        assert "localhost is an address of this machine" in message(f"{server.url}/moved", allow_private=False)
        assert checked == ["127.0.0.1", "localhost"] and "/image" not in server.asked[-1:]


@pytest.mark.parametrize(
    "url", ["file:///etc/hostname", "ftp://example.org/x.png", "s3://a/b", "http:///x", "http://"]
)
def test_other_schemes_are_refused(url):
    assert "only http, https and data URLs are read" in message(url)


def test_a_server_that_drips_or_never_ends(local, monkeypatch):
    """In total time, not for each read; and in bytes."""
    monkeypatch.setattr(image_reading_mmcot, "MAX_SECONDS", 0.5)
    monkeypatch.setattr(image_reading_mmcot, "MAX_BYTES", 2**20)
    with Server(body=drip(), headers=drip(headers=False), endless=lambda handler: endless(handler)) as server:

        def endless(handler):
            answer()(handler)
            with contextlib.suppress(OSError):
                while True:
                    handler.wfile.write(bytes(2**16))

        for page, said in (("body", "0.5 seconds"), ("headers", "0.5 seconds"), ("endless", "more than 1 MiB")):
            start, threads = time.monotonic(), threading.active_count()
            assert said in message(f"{server.url}/{page}")
            assert time.monotonic() - start < 3
            for _ in range(50):  # the thread that read ends too
                if threading.active_count() <= threads + 1:  # the server's own
                    break
                time.sleep(0.02)
        names = [thread.name for thread in threading.enumerate()]
        assert not [name for name in names if "run" in name], names
