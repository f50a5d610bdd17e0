"""What runs on a worker: standard library of Python 3.8 only, sent by the operator with every call.

A worker may have no clone yet, and one that has an old clone must still speak the operator's language.
"""
