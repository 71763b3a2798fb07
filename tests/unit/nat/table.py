"""What each call does in each situation: the outcomes that test_decision.py checks, and that docs/development/decision.md shows.

An outcome names who has the host port or address afterwards ("free" is nobody, "ours" the attachment that the call is about), then how
the call failed if it did, then whose record is no longer there. A pair is the outcome where our record is present, and those that
differ from it by what has become of our record.
"""

from __future__ import annotations

from .situations import ADDRESS, PORT

Outcome = str | tuple[str, dict[str, str]]

TABLE: dict[str, dict[str, dict[str, Outcome]]] = {
    PORT: {
        "free": {
            "ADD": "ours",
            "ADD again": "ours",
            "ADD, other ports": "free",
            "DEL": (
                "free, ours forgotten",
                {
                    "lost": "free",
                    "of another host namespace": "free",
                },
            ),
            "CHECK": "free, differs",
            "GC, list": (
                "free",
                {
                    "of another boot": "free, ours forgotten",
                },
            ),
            "GC, no list": (
                "free",
                {
                    "of another boot": "free, ours forgotten",
                },
            ),
            "heal": (
                "ours",
                {
                    "lost": "free",
                    "damaged": "free",
                    "of another boot": "free, ours forgotten",
                    "of another host namespace": "free",
                },
            ),
        },
        "ours": {
            "ADD": "ours",
            "ADD again": "ours",
            "ADD, other ports": "free",
            "DEL": (
                "free, ours forgotten",
                {
                    "lost": "free",
                    "of another host namespace": "free",
                },
            ),
            "CHECK": (
                "ours",
                {
                    "lost": "ours, differs",
                    "damaged": "ours, differs",
                    "of another boot": "ours, differs",
                    "of another host namespace": "ours, differs",
                },
            ),
            "GC, list": (
                "ours",
                {
                    "of another boot": "free, ours forgotten",
                },
            ),
            "GC, no list": (
                "ours",
                {
                    "of another boot": "free, ours forgotten",
                },
            ),
            "heal": (
                "ours",
                {
                    "of another boot": "free, ours forgotten",
                    "of another host namespace": "free",
                },
            ),
        },
        "sibling's": {
            "ADD": "sibling",
            "ADD again": "sibling",
            "ADD, other ports": "sibling",
            "DEL": (
                "sibling, ours forgotten",
                {
                    "lost": "sibling",
                    "of another host namespace": "sibling",
                },
            ),
            "CHECK": (
                "sibling",
                {
                    "lost": "sibling, differs",
                    "damaged": "sibling, differs",
                    "of another boot": "sibling, differs",
                    "of another host namespace": "sibling, differs",
                },
            ),
            "GC, list": (
                "sibling",
                {
                    "of another boot": "sibling, ours forgotten",
                },
            ),
            "GC, no list": (
                "sibling",
                {
                    "of another boot": "sibling, ours forgotten",
                },
            ),
            "heal": (
                "sibling",
                {
                    "of another boot": "sibling, ours forgotten",
                },
            ),
        },
        "other's, alive": {
            "ADD": (
                "other, refused",
                {
                    "damaged": "other, refused, ours forgotten",
                    "of another boot": "other, refused, ours forgotten",
                },
            ),
            "ADD again": (
                "other, refused",
                {
                    "damaged": "other, refused, ours forgotten",
                    "of another boot": "other, refused, ours forgotten",
                },
            ),
            "ADD, other ports": "other",
            "DEL": (
                "other, ours forgotten",
                {
                    "lost": "other",
                    "of another host namespace": "other",
                },
            ),
            "CHECK": "other, differs",
            "GC, list": (
                "other",
                {
                    "of another boot": "other, ours forgotten",
                },
            ),
            "GC, no list": (
                "other",
                {
                    "of another boot": "other, ours forgotten",
                },
            ),
            "heal": (
                "ours, other forgotten",
                {
                    "lost": "other",
                    "damaged": "other",
                    "of another boot": "other, ours forgotten",
                    "of another host namespace": "other",
                },
            ),
        },
        "other's, dead": {
            "ADD": "ours, other forgotten",
            "ADD again": "ours, other forgotten",
            "ADD, other ports": "other",
            "DEL": (
                "other, ours forgotten",
                {
                    "lost": "other",
                    "of another host namespace": "other",
                },
            ),
            "CHECK": "other, differs",
            "GC, list": (
                "free, other forgotten",
                {
                    "of another boot": "free, other forgotten, ours forgotten",
                },
            ),
            "GC, no list": (
                "free, other forgotten",
                {
                    "of another boot": "free, other forgotten, ours forgotten",
                },
            ),
            "heal": (
                "ours",
                {
                    "lost": "free",
                    "damaged": "free",
                    "of another boot": "free, ours forgotten",
                    "of another host namespace": "free",
                },
            ),
        },
        "other's, cannot tell": {
            "ADD": (
                "other, refused",
                {
                    "damaged": "other, refused, ours forgotten",
                    "of another boot": "other, refused, ours forgotten",
                },
            ),
            "ADD again": (
                "other, refused",
                {
                    "damaged": "other, refused, ours forgotten",
                    "of another boot": "other, refused, ours forgotten",
                },
            ),
            "ADD, other ports": "other",
            "DEL": (
                "other, ours forgotten",
                {
                    "lost": "other",
                    "of another host namespace": "other",
                },
            ),
            "CHECK": "other, differs",
            "GC, list": (
                "other",
                {
                    "of another boot": "other, ours forgotten",
                },
            ),
            "GC, no list": (
                "other",
                {
                    "of another boot": "other, ours forgotten",
                },
            ),
            "heal": (
                "ours, other forgotten",
                {
                    "lost": "other",
                    "damaged": "other",
                    "of another boot": "other, ours forgotten",
                    "of another host namespace": "other",
                },
            ),
        },
        "orphan's": {
            "ADD": (
                "orphan, refused",
                {
                    "damaged": "orphan, refused, ours forgotten",
                    "of another boot": "orphan, refused, ours forgotten",
                },
            ),
            "ADD again": (
                "orphan, refused",
                {
                    "damaged": "orphan, refused, ours forgotten",
                    "of another boot": "orphan, refused, ours forgotten",
                },
            ),
            "ADD, other ports": "orphan",
            "DEL": (
                "orphan, ours forgotten",
                {
                    "lost": "orphan",
                    "of another host namespace": "orphan",
                },
            ),
            "CHECK": "orphan, differs",
            "GC, list": (
                "free",
                {
                    "of another boot": "free, ours forgotten",
                },
            ),
            "GC, no list": (
                "orphan",
                {
                    "of another boot": "orphan, ours forgotten",
                },
            ),
            "heal": (
                "ours",
                {
                    "lost": "orphan",
                    "damaged": "orphan",
                    "of another boot": "orphan, ours forgotten",
                    "of another host namespace": "orphan",
                },
            ),
        },
        "shared, same way": {
            "ADD": "other+ours",
            "ADD again": "other+ours",
            "ADD, other ports": "other",
            "DEL": (
                "other, ours forgotten",
                {
                    "lost": "other",
                    "of another host namespace": "other",
                },
            ),
            "CHECK": "other, differs",
            "GC, list": (
                "other",
                {
                    "of another boot": "other, ours forgotten",
                },
            ),
            "GC, no list": (
                "other",
                {
                    "of another boot": "other, ours forgotten",
                },
            ),
            "heal": (
                "other+ours",
                {
                    "lost": "other",
                    "damaged": "other",
                    "of another boot": "other, ours forgotten",
                    "of another host namespace": "other",
                },
            ),
        },
        "shared, another way": {
            "ADD": (
                "other, refused",
                {
                    "damaged": "other, refused, ours forgotten",
                    "of another boot": "other, refused, ours forgotten",
                },
            ),
            "ADD again": (
                "other, refused",
                {
                    "damaged": "other, refused, ours forgotten",
                    "of another boot": "other, refused, ours forgotten",
                },
            ),
            "ADD, other ports": "other",
            "DEL": (
                "other, ours forgotten",
                {
                    "lost": "other",
                    "of another host namespace": "other",
                },
            ),
            "CHECK": "other, differs",
            "GC, list": (
                "other",
                {
                    "of another boot": "other, ours forgotten",
                },
            ),
            "GC, no list": (
                "other",
                {
                    "of another boot": "other, ours forgotten",
                },
            ),
            "heal": (
                "ours, other forgotten",
                {
                    "lost": "other",
                    "damaged": "other",
                    "of another boot": "other, ours forgotten",
                    "of another host namespace": "other",
                },
            ),
        },
        "unreadable": {
            "ADD": (
                "other, refused",
                {
                    "damaged": "other, refused, ours forgotten",
                    "of another boot": "other, refused, ours forgotten",
                },
            ),
            "ADD again": (
                "other, refused",
                {
                    "damaged": "other, refused, ours forgotten",
                    "of another boot": "other, refused, ours forgotten",
                },
            ),
            "ADD, other ports": "other",
            "DEL": (
                "other, ours forgotten",
                {
                    "lost": "other",
                    "of another host namespace": "other",
                },
            ),
            "CHECK": "other, differs",
            "GC, list": (
                "other",
                {
                    "of another boot": "other, ours forgotten",
                },
            ),
            "GC, no list": (
                "other",
                {
                    "of another boot": "other, ours forgotten",
                },
            ),
            "heal": (
                "ours",
                {
                    "lost": "other",
                    "damaged": "other",
                    "of another boot": "other, ours forgotten",
                    "of another host namespace": "other",
                },
            ),
        },
    },
    ADDRESS: {
        "free": {
            "ADD": "ours",
            "ADD again": "ours",
            "ADD, other ports": "ours",
            "DEL": (
                "free, ours forgotten",
                {
                    "lost": "free",
                    "of another host namespace": "free",
                },
            ),
            "CHECK": "free, differs",
            "GC, list": (
                "free",
                {
                    "of another boot": "free, ours forgotten",
                },
            ),
            "GC, no list": (
                "free",
                {
                    "of another boot": "free, ours forgotten",
                },
            ),
            "heal": (
                "ours",
                {
                    "lost": "free",
                    "damaged": "free",
                    "of another boot": "free, ours forgotten",
                    "of another host namespace": "free",
                },
            ),
        },
        "ours": {
            "ADD": "ours",
            "ADD again": "ours",
            "ADD, other ports": "ours",
            "DEL": (
                "free, ours forgotten",
                {
                    "lost": "free",
                    "of another host namespace": "free",
                },
            ),
            "CHECK": (
                "ours",
                {
                    "lost": "ours, differs",
                    "damaged": "ours, differs",
                    "of another boot": "ours, differs",
                    "of another host namespace": "ours, differs",
                },
            ),
            "GC, list": (
                "ours",
                {
                    "of another boot": "free, ours forgotten",
                },
            ),
            "GC, no list": (
                "ours",
                {
                    "of another boot": "free, ours forgotten",
                },
            ),
            "heal": (
                "ours",
                {
                    "of another boot": "free, ours forgotten",
                    "of another host namespace": "free",
                },
            ),
        },
        "sibling's": {
            "ADD": "ours, sibling forgotten",
            "ADD again": "ours, sibling forgotten",
            "ADD, other ports": "ours, sibling forgotten",
            "DEL": (
                "sibling, ours forgotten",
                {
                    "lost": "sibling",
                    "of another host namespace": "sibling",
                },
            ),
            "CHECK": "sibling, differs",
            "GC, list": (
                "sibling",
                {
                    "of another boot": "sibling, ours forgotten",
                },
            ),
            "GC, no list": (
                "sibling",
                {
                    "of another boot": "sibling, ours forgotten",
                },
            ),
            "heal": (
                "ours, sibling forgotten",
                {
                    "lost": "sibling",
                    "damaged": "sibling",
                    "of another boot": "sibling, ours forgotten",
                    "of another host namespace": "sibling",
                },
            ),
        },
        "other's, alive": {
            "ADD": "ours, other forgotten",
            "ADD again": "ours, other forgotten",
            "ADD, other ports": "ours, other forgotten",
            "DEL": (
                "other, ours forgotten",
                {
                    "lost": "other",
                    "of another host namespace": "other",
                },
            ),
            "CHECK": "other, differs",
            "GC, list": (
                "other",
                {
                    "of another boot": "other, ours forgotten",
                },
            ),
            "GC, no list": (
                "other",
                {
                    "of another boot": "other, ours forgotten",
                },
            ),
            "heal": (
                "ours, other forgotten",
                {
                    "lost": "other",
                    "damaged": "other",
                    "of another boot": "other, ours forgotten",
                    "of another host namespace": "other",
                },
            ),
        },
        "other's, dead": {
            "ADD": "ours, other forgotten",
            "ADD again": "ours, other forgotten",
            "ADD, other ports": "ours, other forgotten",
            "DEL": (
                "other, ours forgotten",
                {
                    "lost": "other",
                    "of another host namespace": "other",
                },
            ),
            "CHECK": "other, differs",
            "GC, list": (
                "free, other forgotten",
                {
                    "of another boot": "free, other forgotten, ours forgotten",
                },
            ),
            "GC, no list": (
                "free, other forgotten",
                {
                    "of another boot": "free, other forgotten, ours forgotten",
                },
            ),
            "heal": (
                "ours",
                {
                    "lost": "free",
                    "damaged": "free",
                    "of another boot": "free, ours forgotten",
                    "of another host namespace": "free",
                },
            ),
        },
        "other's, cannot tell": {
            "ADD": "ours, other forgotten",
            "ADD again": "ours, other forgotten",
            "ADD, other ports": "ours, other forgotten",
            "DEL": (
                "other, ours forgotten",
                {
                    "lost": "other",
                    "of another host namespace": "other",
                },
            ),
            "CHECK": "other, differs",
            "GC, list": (
                "other",
                {
                    "of another boot": "other, ours forgotten",
                },
            ),
            "GC, no list": (
                "other",
                {
                    "of another boot": "other, ours forgotten",
                },
            ),
            "heal": (
                "ours, other forgotten",
                {
                    "lost": "other",
                    "damaged": "other",
                    "of another boot": "other, ours forgotten",
                    "of another host namespace": "other",
                },
            ),
        },
        "orphan's": {
            "ADD": "ours",
            "ADD again": "ours",
            "ADD, other ports": "ours",
            "DEL": (
                "orphan, ours forgotten",
                {
                    "lost": "orphan",
                    "of another host namespace": "orphan",
                },
            ),
            "CHECK": "orphan, differs",
            "GC, list": (
                "free",
                {
                    "of another boot": "free, ours forgotten",
                },
            ),
            "GC, no list": (
                "orphan",
                {
                    "of another boot": "orphan, ours forgotten",
                },
            ),
            "heal": (
                "ours",
                {
                    "lost": "orphan",
                    "damaged": "orphan",
                    "of another boot": "orphan, ours forgotten",
                    "of another host namespace": "orphan",
                },
            ),
        },
        "unreadable": {
            "ADD": "ours",
            "ADD again": "ours",
            "ADD, other ports": "ours",
            "DEL": (
                "other, ours forgotten",
                {
                    "lost": "other",
                    "of another host namespace": "other",
                },
            ),
            "CHECK": "other, differs",
            "GC, list": (
                "other",
                {
                    "of another boot": "other, ours forgotten",
                },
            ),
            "GC, no list": (
                "other",
                {
                    "of another boot": "other, ours forgotten",
                },
            ),
            "heal": (
                "ours",
                {
                    "lost": "other",
                    "damaged": "other",
                    "of another boot": "other, ours forgotten",
                    "of another host namespace": "other",
                },
            ),
        },
    },
}
