// Asking, answers as they grow, stopping. One question of a page runs at a time.

const MOST_SEED = 2 ** 31;
const SILENCE = 20_000; // milliseconds; answers tell of themselves twice a second

function settingsNow() {
  const seed = Math.min(Math.max(Math.round($('seed').valueAsNumber), 0), MOST_SEED);
  return { max_new_tokens: $('length').valueAsNumber, temperature: $('temperature').valueAsNumber, seed };
}

function showSettings({ max_new_tokens: n, temperature: t, seed }) {
  for (const [id, value] of Object.entries({ length: n, temperature: t, seed })) $(id).value = Number.isFinite(value) ? value : '';
}

// Ask: the prompt and the settings as they stand, in all columns that are understood.
function askAll() {
  if (!S.ready) return;
  const isRead = !S.columns.some((column) => column.reading);
  if (!isRead && !S.held) {
    S.held = true; // until the server has read the expression
    return;
  }
  S.held = false;
  stop();
  const columns = S.columns.filter((column) => !column.trouble);
  if (!columns.length) {
    alertOf('No column can be answered: add one, or correct its expression.');
    return;
  }
  const settings = settingsNow();
  const key = () => JSON.stringify([prompt.value, columns.map(expressionOf), settings]);
  if (settings.temperature > 0 && key() === S.lastKey) settings.seed = (settings.seed || 0) + 1;
  S.lastKey = key();
  showSettings(settings);
  const before = shownNow();
  Object.assign(S, { asked: prompt.value, settings });
  ask(columns, before);
}

// Columns that have changed, and those that are being answered: as the comparison was asked.
function askAgain() {
  const columns = S.columns.filter((column) => !column.trouble && (S.waiting.has(column) || isBusy(column)));
  stop();
  if (columns.length) ask(columns);
}

// What a question that is refused leaves as it was.
const shownNow = () => ({ asked: S.asked, settings: S.settings, opened: S.opened, foot: S.foot });

function ask(columns, before = shownNow()) {
  rest();
  Object.assign(S, { foot: '', opened: openedNow() });
  S.flight = {
    id: ++S.flights, columns: [...columns], isWhole: columns.length === S.columns.length, before,
    answers: columns.map(({ asked, askedTerms, answer, answered, language, state }) => ({ asked, askedTerms, answer, answered, language, state })),
  };
  for (const column of columns) {
    Object.assign(column, NOTHING, { asked: expressionOf(column), askedTerms: [...column.terms], state: 'waiting' });
  }
  if (columns.some((column) => column.id === S.inspected)) closeInside();
  alertOf('');
  const { max_new_tokens: length, temperature, seed } = S.settings;
  send('compare', [S.asked, columns.map((column) => column.asked), length, temperature, seed, S.flight.id]);
  listen();
  draw();
}

// Nothing is asked any more that was about to be.
function rest() {
  clearTimeout(S.timer);
  clearTimeout(S.silence);
  S.waiting.clear();
}

function stop() {
  rest();
  if (!S.flight) return;
  send('stop', [S.flight.id]);
  for (const column of S.flight.columns) column.state = 'stopped';
  S.flight = null;
  announce('Stopped');
  draw();
}

// What was refused on its way, by a proxy or a full server, is never answered.
function listen() {
  clearTimeout(S.silence);
  S.silence = setTimeout(() => {
    send('stop', [S.flight.id]); // it may go on there, and counts as one of ours
    fail('Nothing was heard for 20 seconds: ask again, or load the page anew.');
  }, SILENCE);
}

// What was refused before it began leaves the answers that were there.
function fail(text) {
  const { columns, answers, before } = S.flight;
  const began = columns.some((column) => column.answer);
  columns.forEach((column, index) => Object.assign(column, began
    ? (column.answer ? { state: 'broken off' } : NOTHING) : { ...NOTHING, ...answers[index] }));
  if (!began) Object.assign(S, before);
  rest();
  S.flight = null;
  if (!S.columns.some((column) => column.answer)) S.asked = null; // no comparison has come of it
  alertOf(text);
  draw();
}

function answered(message) {
  if (!S.flight || message.flight !== S.flight.id) return; // of a question that was stopped
  listen();
  if (message.error) return fail(message.error);
  const { tokens, seconds, done, waiting } = message;
  if (tokens) for (const column of S.columns) if (column.trouble) Object.assign(column, NOTHING); // of another question
  const running = tokens ? 'writing' : 'waiting';
  const state = waiting ? `${waiting} before you` : running;
  S.flight.columns.forEach((column, index) => Object.assign(column, {
    answer: message.texts[index],
    answered: message.names[index],
    language: message.languages ? message.languages[index] : null,
    state: done ? '' : state,
  }));
  S.foot = tokens
    ? `${tokens} tokens ${done ? 'in all' : 'so far'}, ${seconds.toFixed(1)} s, ${(tokens / seconds).toFixed(1)} tokens a second, one batch`
    : '';
  if (done) {
    S.measured = S.flight.isWhole ? { tokens, seconds: Number(seconds.toFixed(2)) } : {};
    clearTimeout(S.silence);
    S.flight = null;
    announce(`Answered: ${S.foot}`);
    remember();
  }
  return draw();
}

function draw() {
  const running = S.flight !== null;
  const [hidden, shown] = running ? ['compare', 'stop'] : ['stop', 'compare'];
  const moves = document.activeElement === $(hidden);
  $(hidden).hidden = true;
  $(shown).hidden = false;
  $('compare').disabled = !S.ready;
  if (moves) $(shown).focus();
  $('foot').textContent = S.foot;
  showAsked();
  drawColumns();
}

// The prompt may have been edited since: then it is not the one that the answers are to.
function showAsked() {
  $('asked').hidden = S.asked === null || prompt.value === S.asked;
  $('asked').textContent = `These answers are to: ${S.asked}`;
}

function alertOf(text) {
  $('alert').hidden = !text;
  $('alert').textContent = text;
}

// For screen readers: what is over, not every token.
function announce(text) {
  $('live').textContent = text;
}
