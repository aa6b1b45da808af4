"""The command line: ``rightreasons COMMAND``."""

from rightreasons.cli import check, suspects, take
from rightreasons.cli.commands import app
from rightreasons.cli.shared import register

register(app, "rightreasons check runs/parts --model new.pt --max-flip-rate 0.1", failed=check.CANNOT_CHECK)(check.check)
register(app, "rightreasons suspects runs/parts --as csv --as coco")(suspects.suspects)
register(app, 'rightreasons import runs/parts marks.json --by "Dr Ann"', "import")(take.import_marks)

__all__ = ["app"]
