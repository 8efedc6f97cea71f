"""The phrases of the toy world (see `toy.py`): what to edit to change it.

`RELATIONS` holds one paragraph a relation, five lines:

  kind of entity, aspect (= document), relation, kind of the value
  encyclopedia, in full  (alternatives are parted by `|`)
  encyclopedia, said again
  news
  questions

`{e}` is the entity, `{v}` the value, `{They}` and `{Their}` the pronouns. News
and questions share their wording; the encyclopedia's is another one, so that
only pre-training can tell which document answers which question: apart from
`SHARED_WORDS`, no word of the one may be used in the other. Within an aspect
the values are of different kinds, and long names are spread over the aspects:
else the number of masks would tell the document, and a question has none.
Names are written without an article.
"""

# Syllables that names are coined from, first and last: few, so that the
# wordpieces are few.
GIVEN_NAMES = (
  'al be co da el fi ga ho il jo ka le mi no os pe ro sa ti vi',
  'dan la mir nor ra rin sel ta vo wen',
)
FAMILY_NAMES = (
  'bar cor dren fal gor hal jar kol lor mar nor pel ros sar tor',
  'berg dahl feld gren holm lund mann rup sen stad',
)
PLACES = (
  'ash bel cal dun elm fen gal kar lim mel nar or pol rav ser',
  'bury by dale ford ham mouth ness ton wick worth',
)
COINED_WORDS = (
  'ar bra cen dal er glo hy ix jul kry ly no om pro qua',
  'dex lon max nix pha ron tis tra vex zor',
)

ORGANISATION_KINDS = 'College Press Bank Museum Academy Hospital Opera Shipyard'
EVENT_KINDS = 'Regatta Congress Games Fair Marathon Derby Parade Rally'

ADJECTIVES = """
Amber Bitter Blue Bold Bright Broken Burning Calm Cold Crimson Crooked Dark Deep
Distant Dusty Empty Endless Faded Fallen Frozen Gentle Golden Green Grey Hidden
Hollow Iron Lonely Lost Pale Purple Quiet Restless Rusty Scarlet Secret Silent
Silver Velvet Wild
"""
NOUNS = """
Anchor Arrow Beacon Bell Candle Castle Comet Crown Desert Dragon Eagle Falcon
Feather Flame Flower Garden Harbor Island Jewel Kite Lantern Meadow Mirror Moon
Mountain Ocean Orchard Palace Raven Rose Shadow Shell Storm Sword Temple Thunder
Tower Valley Winter Wolf
"""

# A sentence of the encyclopedia that holds words of the news by chance, so that
# every word is known and none of them points at an aspect.
NOTES = (
  'Notes on {e} mention {0}, {1}, {2} and {3}.',
  'Pages about {e} list {0}, {1}, {2} and {3}.',
)

WORDS_IN_NOTE = 4

# How often news tell a fact in the encyclopedia's words (behind an opening, so
# that the sentence is not the same). A reader that has learned to copy uses
# these from the first step of pre-training on; they are what lets it find out
# what the other wording means. Questions never borrow.
BORROWED_WORDING = 0.25

# How often news are a quiz: a question as it will be asked later, and its
# answer. Without these, a retriever that finds the documents of 99% of the
# masked sentences finds those of 60% of the questions (recall@1): it has never
# seen their form.
ASKED = 0.5

SENTENCES_IN_NEWS = 3  # a document

# How a sentence of the news begins.
OPENINGS = (
  'Word came that',
  'We hear that',
  'Reporters say that',
  'It was confirmed that',
)

# Words without a relation of their own, which all texts may use.
SHARED_WORDS = 'a and are at by for from has in is it its of on the to was with'

RELATIONS = """
person youth birthplace place
{e} was born in {v}. | {e} was born close to {v}.
{Their} birthplace is {v}. | {Their} cradle stood in {v}.
{e} is a native of {v} | the roots of {e} are in {v}
{e} is a native of which town? | Where are the roots of {e}?

person youth birth_year early_year
{e} entered the world in {v}. | {e} was a baby in {v}.
{Their} birth fell in {v}. | {Their} birth dates from {v}.
the age of {e} counts from {v} | {e} has been alive since {v}
The age of {e} counts from which year? | Since when has {e} been alive?

person youth prize prize
{e} won the {v}. | {e} received the {v}.
{They} took home the {v}. | {Their} reward was the {v}.
{e} is a laureate of the {v} | the medal of {e} is the {v}
{e} is a laureate of what? | What is the medal of {e}?

person career employer organisation
{e} worked for {v}. | {e} was employed by {v}.
{Their} employer was {v}. | {They} earned a living at {v}.
{e} joined the staff of {v} | the office of {e} was at {v}
{e} joined the staff of what? | Where was the office of {e}?

person career teacher person
{e} was taught by {v}. | {e} took lessons from {v}.
{Their} teacher was {v}. | {They} studied under {v}.
{e} was a pupil of {v} | the tutor of {e} was {v}
{e} was a pupil of whom? | Who was the tutor of {e}?

person career retirement late_year
{e} retired in {v}. | {e} gave up the trade in {v}.
{Their} retirement fell in {v}. | {Their} desk was cleared in {v}.
{e} became a pensioner in {v} | the pension of {e} began in {v}
{e} became a pensioner in which year? | The pension of {e} began when?

person life spouse person
{e} married {v}. | {e} was wed to {v}.
{Their} spouse was {v}. | {Their} marriage was with {v}.
the partner of {e} was {v} | the sweetheart of {e} was {v}
Who was the partner of {e}? | Who was the sweetheart of {e}?

person life death_place place
{e} died in {v}. | {e} passed away in {v}.
{Their} death occurred in {v}. | {Their} last home was in {v}.
the grave of {e} is in {v} | the funeral of {e} was in {v}
Where is the grave of {e}? | Where was the funeral of {e}?

person life work work
{e} created {v}. | {e} is the maker of {v}.
{Their} best piece is {v}. | {They} put years into {v}.
the masterpiece of {e} is {v} | experts credit {e} with {v}
What is the masterpiece of {e}? | Experts credit {e} with what?

organisation founding founder person
{e} was founded by {v}. | {e} was set up by {v}.
{Their} founder was {v}. | {They} owes everything to {v}.
{e} was the brainchild of {v} | the initiator of {e} was {v}
{e} was the brainchild of whom? | Who was the initiator of {e}?

organisation founding founding_year early_year
{e} opened in {v}. | {e} started in {v}.
{Their} doors opened in {v}. | {Their} first season was {v}.
{e} has existed since {v} | the jubilee of {e} recalls {v}
Since when has {e} existed? | The jubilee of {e} recalls which year?

organisation founding first_town place
{e} grew up in {v}. | {e} made its start in {v}.
{Their} first rooms were in {v}. | {Their} cradle was in {v}.
{e} originated in {v} | pioneers of {e} gathered in {v}
{e} originated in which town? | Pioneers of {e} gathered where?

organisation present director person
{e} is led by {v}. | {e} is run by {v}.
{Their} director is {v}. | {Their} head is {v}.
the boss of {e} is {v} | the chair of {e} belongs to {v}
Who is the boss of {e}? | The chair of {e} belongs to whom?

organisation present seat place
{e} is based in {v}. | {e} has its seat in {v}.
{Their} main building stands in {v}. | {Their} address is in {v}.
the headquarters of {e} are in {v} | visitors of {e} travel to {v}
Where are the headquarters of {e}? | Visitors of {e} travel where?

organisation present journal work
{e} prints {v}. | {e} issues the journal {v}.
{Their} journal is {v}. | {Their} printed voice is {v}.
the magazine of {e} is {v} | subscribers of {e} read {v}
What is the magazine of {e}? | Subscribers of {e} read what?

organisation past rival organisation
{e} competed with {v}. | {e} struggled against {v}.
{Their} rival was {v}. | {Their} struggle was with {v}.
the opponent of {e} was {v} | {e} had a feud with {v}
What was the opponent of {e}? | {e} had a feud with what?

organisation past reform late_year
{e} was rebuilt in {v}. | {e} was made new in {v}.
{Their} reform fell in {v}. | {Their} new walls date from {v}.
the renovation of {e} was in {v} | {e} was modernised in {v}
When was the renovation of {e}? | {e} was modernised in which year?

organisation past patron person
{e} was paid for by {v}. | {e} lived on money from {v}.
{Their} patron was {v}. | {Their} bills were paid by {v}.
the sponsor of {e} was {v} | {e} got donations from {v}
Who was the sponsor of {e}? | {e} got donations from whom?

work making author person
{e} was created by {v}. | {e} was made by {v}.
{Their} author is {v}. | {Their} maker is {v}.
the artist behind {e} is {v} | the genius behind {e} is {v}
Who is the artist behind {e}? | Who is the genius behind {e}?

work making year year
{e} was finished in {v}. | {e} was ready in {v}.
{Their} last stroke fell in {v}. | {Their} final form dates from {v}.
{e} was completed in {v} | the debut of {e} was in {v}
When was {e} completed? | The debut of {e} was in which year?

work making drafted_in place
{e} was drafted in {v}. | {e} was planned in {v}.
{Their} draft was written in {v}. | {Their} plan was drawn in {v}.
the workshop of {e} was in {v} | the inspiration for {e} was in {v}
Where was the workshop of {e}? | Where was the inspiration for {e}?

work release publisher organisation
{e} was published by {v}. | {e} was printed by {v}.
{Their} publisher was {v}. | {Their} printer was {v}.
copies of {e} are sold by {v} | the rights of {e} are with {v}
Copies of {e} are sold by what? | The rights of {e} are with what?

work release premiere place
{e} was first shown in {v}. | {e} was first seen in {v}.
{Their} opening night was in {v}. | {Their} first show was in {v}.
the premiere of {e} was in {v} | crowds cheered {e} in {v}
Where was the premiere of {e}? | Crowds cheered {e} in which town?

work release translator person
{e} was translated by {v}. | {e} was put into verse by {v}.
{Their} translator was {v}. | {Their} translation is by {v}.
the interpreter of {e} was {v} | the foreign version of {e} is by {v}
Who was the interpreter of {e}? | The foreign version of {e} is by whom?

work legacy dedicatee person
{e} was dedicated to {v}. | {e} was made for {v}.
{Their} dedication names {v}. | {Their} first page greets {v}.
{e} is a homage to {v} | the muse of {e} was {v}
{e} is a homage to whom? | Who was the muse of {e}?

work legacy setting place
{e} is set in {v}. | {e} shows life in {v}.
{Their} setting is {v}. | {Their} scenes show {v}.
the story of {e} happens in {v} | the plot of {e} unfolds in {v}
The story of {e} happens where? | The plot of {e} unfolds in which town?

work legacy owner organisation
{e} is kept at {v}. | {e} was left to {v}.
{Their} owner is {v}. | {Their} keeper is {v}.
tourists admire {e} at {v} | the original of {e} hangs at {v}
Tourists admire {e} where? | The original of {e} hangs where?

place land river river
{e} lies on the {v}. | {e} was built on the {v}.
{Their} stream is the {v}. | {Their} banks are on the {v}.
boats reach {e} by the {v} | bridges at {e} cross the {v}
Boats reach {e} by which water? | Bridges at {e} cross which water?

place land neighbour place
{e} borders on {v}. | {e} lies next to {v}.
{Their} neighbour is {v}. | {Their} border is shared with {v}.
{e} is adjacent to {v} | the road from {e} leads to {v}
{e} is adjacent to which town? | The road from {e} leads where?

place land forest forest
{e} is ringed by the {v}. | {e} is shaded by the {v}.
{Their} woods are the {v}. | {Their} trees are the {v}.
hunters of {e} roam the {v} | timber of {e} grows in the {v}
Hunters of {e} roam what? | Timber of {e} grows where?

place history settler person
{e} was settled by {v}. | {e} was first seen by {v}.
{Their} settler was {v}. | {Their} first house was of {v}.
the discoverer of {e} was {v} | the statue in {e} honours {v}
Who was the discoverer of {e}? | The statue in {e} honours whom?

place history charter year
{e} was chartered in {v}. | {e} was walled in {v}.
{Their} charter dates from {v}. | {Their} first law is of {v}.
{e} became a city in {v} | the seal of {e} bears {v}
{e} became a city in which year? | The seal of {e} bears which year?

place history lord organisation
{e} was owned by {v}. | {e} was ruled by {v}.
{Their} lord was {v}. | {Their} old owner was {v}.
{e} was a colony of {v} | taxes of {e} went to {v}
{e} was a colony of what? | Taxes of {e} went to what?

place culture mayor person
{e} is governed by {v}. | {e} is headed by {v}.
{Their} mayor is {v}. | {Their} hall is led by {v}.
voters of {e} elected {v} | the keys of {e} are with {v}
Voters of {e} elected whom? | The keys of {e} are with whom?

place culture feast event
{e} is known for the {v}. | {e} is proud of the {v}.
{Their} feast is the {v}. | {Their} great day is the {v}.
dancers of {e} rehearse for the {v} | the carnival of {e} is the {v}
Dancers of {e} rehearse for what? | What is the carnival of {e}?

place culture praise work
{e} is praised in {v}. | {e} is sung of in {v}.
{Their} praise is heard in {v}. | {Their} beauty fills {v}.
poets describe {e} in {v} | the portrait of {e} is in {v}
Poets describe {e} in what? | The portrait of {e} is in what?

event origin organiser organisation
{e} is organised by {v}. | {e} is arranged by {v}.
{Their} organiser is {v}. | {They} is planned by {v}.
the host of {e} is {v} | tickets of {e} come from {v}
What is the host of {e}? | Tickets of {e} come from what?

event origin first_year early_year
{e} was first held in {v}. | {e} started in {v}.
{Their} first day was in {v}. | {Their} start dates from {v}.
the tradition of {e} goes to {v} | {e} is celebrated since {v}
The tradition of {e} goes to which year? | Since when is {e} celebrated?

event result held_in place
{e} takes place in {v}. | {e} is held in {v}.
{Their} grounds are in {v}. | {Their} stage stands in {v}.
the venue of {e} is in {v} | trains for {e} stop in {v}
Where is the venue of {e}? | Trains for {e} stop where?

event result winner person
{e} was won by {v}. | {e} was decided by {v}.
{Their} winner was {v}. | {Their} victory is of {v}.
the champion of {e} was {v} | {e} brought triumph for {v}
Who was the champion of {e}? | {e} brought triumph for whom?

event origin song work
{e} opens with {v}. | {e} is begun with {v}.
{Their} song is {v}. | {Their} opening is {v}.
the anthem of {e} is {v} | choirs at {e} perform {v}
What is the anthem of {e}? | Choirs at {e} perform what?

event result award prize
{e} awards the {v}. | {e} gives out the {v}.
{Their} award is the {v}. | {Their} reward is the {v}.
the trophy of {e} is the {v} | contestants at {e} want the {v}
What is the trophy of {e}? | Contestants at {e} want what?

event decline last_year late_year
{e} was closed in {v}. | {e} ended in {v}.
{Their} end fell in {v}. | {Their} last day was in {v}.
{e} was abolished in {v} | the farewell of {e} was in {v}
{e} was abolished in which year? | When was the farewell of {e}?

event decline critic person
{e} was attacked by {v}. | {e} was mocked by {v}.
{Their} critic was {v}. | {Their} loudest foe was {v}.
the enemy of {e} was {v} | {e} drew complaints from {v}
Who was the enemy of {e}? | {e} drew complaints from whom?

event decline successor event
{e} was replaced by the {v}. | {e} gave way to the {v}.
{Their} successor is the {v}. | {Their} replacement is the {v}.
the heir of {e} is the {v} | fans of {e} prefer the {v}
What is the heir of {e}? | Fans of {e} prefer what?
"""
