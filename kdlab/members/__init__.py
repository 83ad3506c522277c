"""Sources of outputs: trained, frozen and averaged networks, banks and mixtures."""

from kdlab.data.preprocessing import Preprocessing
from kdlab.members.bank import Bank
from kdlab.members.copies import EMA, Snapshot
from kdlab.members.fast_options import Fast
from kdlab.members.frozen import Frozen
from kdlab.members.member import Learner, Member
from kdlab.members.output_file import save_outputs
from kdlab.members.retokenized import Retokenized
from kdlab.members.stored import Stored
from kdlab.members.teacher_cache import Cached, TeacherCache

__all__ = ["EMA", "Bank", "Cached", "Fast", "Frozen", "Learner", "Member", "Snapshot", "Stored", "TeacherCache"]
__all__ += ["Preprocessing", "Retokenized", "save_outputs"]
