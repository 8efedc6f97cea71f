"""Words that are capitalised without being part of a name."""

# Taken off the front of a name wherever it stands: `The Beatles`, `In Paris`.
_FUNCTION_WORDS = """
  a an the this that these those such same other others another each every
  either neither both all any some many most more much several various
  certain few fewer no none only half i me my mine we us our ours you your
  yours he him his she her hers it its they them their theirs who whom whose
  which what whatever whoever everyone everybody everything someone somebody
  something anyone anybody anything nobody nothing there here about above
  across after against along alongside amid among amongst around as aside at
  because before behind below beneath beside besides between beyond but by
  circa concerning considering contrary despite due during except following
  for from given if in including inside instead into like near next
  notwithstanding of off on once onto out outside over owing past per prior
  regarding regardless since so than through throughout till to together
  toward towards under underneath unlike until unto upon via versus with
  within without according and or nor yet although though whereas whether
  while whilst unless lest where when whenever wherever why how however
  whence hence thus therefore then thereafter thereby meanwhile moreover
  furthermore further nevertheless nonetheless still otherwise else rather
  perhaps maybe indeed again also too already almost always never ever often
  sometimes seldom now nowadays today later earlier soon afterward
  afterwards formerly just even quite very not yes is are was were be been
  being am do does did has have had having can could shall should will would
  let lets former current incumbent
"""
FUNCTION_WORDS = frozenset(_FUNCTION_WORDS.split())

# No names when they alone open a sentence (or stand alone anywhere: titles).
_OPENERS = """
  dozens hundreds thousands millions first second third fourth fifth last
  final initial part less worth pending provided up opposite long far well
  once twice tonight tomorrow yesterday sooner beforehand please thanks
  thank hello hi dear ok okay get got go goes come comes came make makes
  made take takes took taken see seen sees saw say says said know known
  think thought try tried use used uses keep kept give gave ask put set run
  check feel hope want need look read write call find note consider suppose
  imagine remember born built held led left sent sung written won lost
  spoken told thrown shot may might must modern ancient early late recent
  new old original typical famous notable popular common rare major minor
  main key large larger largest small smaller smallest big great greater
  greatest high higher highest low lower lowest longer short young older
  younger good better best bad worse worst full general special similar
  different important additional subsequent previous overall total local
  regional national international global foreign domestic federal public
  private official individual single double triple human social political
  economic cultural historical traditional contemporary prominent
  significant numerous countless multiple successive alternative possible
  likely unlikely true false open free right wrong nice happy sad sure able
  unable unknown people men women children members critics scholars
  historians scientists researchers authors writers artists musicians fans
  players students teachers supporters opponents residents visitors
  officials experts observers analysts examples example results result
  studies study research evidence sources reports report reviews review work
  works parts types type forms form versions version member groups group
  cities languages countries companies schools games films books songs
  albums species plants animals population production construction
  development education music history geography climate culture religion
  politics government law science art sports food water land air time life
  death love war peace money health power energy light sound nature reason
  thing things way ways day days year years month months week weeks century
  centuries decade decades age period end beginning top back side place name
  names number numbers word words list section chapter page figure table
  volume edition question answer problem case fact idea genes cells speech
  machine gas
"""
_NUMBERS = 'one two three four five six seven eight nine ten eleven twelve'
NUMBERS = frozenset(_NUMBERS.split())
OPENERS = NUMBERS | frozenset(_OPENERS.split())

_TITLE_WORDS = """
  president minister senator governor congressman congresswoman
  representative professor colonel captain lieutenant sergeant brigadier
  admiral chancellor secretary mayor ambassador premier archbishop bishop
  chairman director coach actor actress singer author judge justice general
  major sir mp mps pm am ad bc mr mrs ms dr prof rev gen col lt capt sgt gov
  sen no st
"""
TITLE_WORDS = frozenset(_TITLE_WORDS.split())

# A sentence's first word with one of these endings is an adverb, a participle
# or an abstract noun more often than a name.
_ENDINGS = """
  ly ing ed ism isms tion tions sion sions ness ment ments ity ities ists
  ers ors ics ical able ible ful less ous ive ology ance ence ency graphy
"""
ENDINGS = tuple(_ENDINGS.split())
