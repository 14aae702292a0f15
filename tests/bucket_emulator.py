"""The emulator of Google Cloud Storage, with what it lacks of the service.

Its reader of uploads drops a carriage return at the end; it takes an object whatever condition is
set (https://cloud.google.com/storage/docs/request-preconditions).

python -m tests.bucket_emulator start --host=localhost --port=PORT ...
"""

import re
import threading
from http import HTTPStatus

from gcp_storage_emulator import __main__, server
from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import objects

read_data, decode_raw_data = server._read_data, server._decode_raw_data
multipart_upload = objects._multipart_upload


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


_uploading = threading.Lock()


def _conditional(request, response, storage):
    """ "ifGenerationMatch=0": only if there is no object of this name."""
    with _uploading:
        if request.query.get("ifGenerationMatch") == ["0"]:
            name = request.data["meta"]["name"]
            try:
                storage.get_file_obj(request.params["bucket_name"], name)
            except NotFound:
                pass
            else:
                response.status = HTTPStatus.PRECONDITION_FAILED
                return
        multipart_upload(request, response, storage)


objects._multipart_upload = _conditional
server._decode_raw_data, server._read_data = _remembered, _whole

if __name__ == "__main__":
    __main__.main()
