"""The emulator of Google Cloud Storage, whose reader of uploads drops a carriage return at the end.

python -m tests.bucket_emulator start --host=localhost --port=PORT ...
"""

import re

from gcp_storage_emulator import __main__, server

read_data, decode_raw_data = server._read_data, server._decode_raw_data


def _remembered(raw, handler):
    handler.uploaded = decode_raw_data(raw, handler)
    return handler.uploaded


def _whole(handler, query):
    value = read_data(handler, query)
    kind = handler.headers.get("Content-Type") or ""
    if kind.startswith("multipart/related"):
        boundary = re.search(r'boundary="?([^";]+)', kind)[1].encode()
        start = handler.uploaded.index(b"--" + boundary, 1)
        start = handler.uploaded.index(b"\n\n", start) + 2
        value["content"] = handler.uploaded[start : handler.uploaded.rindex(b"\n--" + boundary)]
    return value


server._decode_raw_data, server._read_data = _remembered, _whole

if __name__ == "__main__":
    __main__.main()
