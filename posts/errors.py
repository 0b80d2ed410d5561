"""Errors the API answers with, beside those of Django REST framework: each has a status and a
stable code.
"""

from rest_framework.exceptions import APIException


class Unprocessable(APIException):
    """The JSON is fine but what it says is not."""

    status_code = 422
    default_detail = "The request cannot be processed."
    default_code = "unprocessable"


class PayloadTooLarge(APIException):
    status_code = 413
    default_detail = "The request body is too large."
    default_code = "payload_too_large"


class Gone(APIException):
    status_code = 410
    default_detail = "The post was deleted."
    default_code = "gone"


class UnsupportedEncoding(APIException):
    status_code = 415
    default_detail = "The Content-Encoding of the body is not supported."
    default_code = "unsupported_encoding"
