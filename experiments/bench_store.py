"""300,000 explained units, searched, read and judged by people while a run writes 50 results a second.

Units are made up (store_made.py): all kinds of records that a real unit has are there, fewer of each. The home is made
once, kept under `experiments/` in the home (2 GB), and copied for each part.

ingest      evidence as long as real evidence, through the outbox into the findings: at least 20,000 rows a second, none
            lost, none twice.
size        bytes of the database a unit, with all that a run of the playbook leaves of one.
search      by meaning (p95 under 300 ms, the question's embedding included), by word (150 ms) and both, with filters
            and without.
pages       `lamplighter serve` in a process of its own: unit pages (p95 under 100 ms), the start page (300 ms), lists,
            search; how far they lag behind, and the server's memory.
review      in Chromium, by keyboard: card to next card (p95 under 200 ms); two people at once and a kill -9 on the way:
            no card given twice, nothing lost. Says so where there is no Chromium.
hostile     hostile requests, each with the answer that it gets.
"""

from .report import Parts
from .store_hostile import hostile
from .store_ingest import ingest, size
from .store_review import review
from .store_search import find
from .store_served import pages

PARTS: Parts = {
    "ingest": ingest, "size": size, "search": find, "pages": pages, "review": review, "hostile": hostile,
}  # fmt: skip

__all__ = ["PARTS"]
