// Checkpoints, history, links and files.

const MOST_PAST = 50;
const PATIENCE = 120_000; // milliseconds; a checkpoint may come from the hub, and wait for a batch

function drawCheckpoints() {
  $('ri-checkpoints-button').textContent = S.checkpoints.map((each) => each.name).join(' + ') || 'Checkpoints';
  $('opened').replaceChildren(...S.checkpoints.map((each) => make('article', { class: 'ri-checkpoint' },
    make('div', { class: 'ri-line' },
      make('h3', {}, each.name), make('span', { class: 'ri-space' }),
      each.label ? make('button', { type: 'button', class: 'ri-quiet', disabled: S.moving, 'aria-label': `Close ${each.name}`, onclick: () => move('close', each.label) }, 'Close') : null),
    make('p', {}, ...each.names.map((name) => make('span', { class: 'ri-name', style: `--colour: ${S.colours[name]}` }, name))),
    make('p', { class: 'ri-hint' }, each.about))));
  $('ri-sources').replaceChildren(...S.sources.map((name) => make('option', { value: name })));
  $('open').disabled = S.moving;
  $('ri-open-hint').textContent = `One of ${S.folder}/, or a hub id. Its subspaces are called NAME@LABEL.`;
}

// One after the other: each answers with all checkpoints of the page.
function move(name, value) {
  S.moving = setTimeout(() => opened({ error: 'Nothing was heard: try again.' }), PATIENCE);
  send(name, [value]);
  drawCheckpoints();
}

function opened(message) {
  clearTimeout(S.moving);
  S.moving = false;
  $('ri-open-alert').hidden = !message.error;
  $('ri-open-alert').textContent = message.error || '';
  if (message.error) return drawCheckpoints();
  if (message.opened) $('source').value = '';
  return takeNames(message);
}

function takeNames({ names, colours, checkpoints, sources, folder }) {
  Object.assign(S, { names, checkpoints, sources, folder });
  S.colours = Object.fromEntries(names.map((name, index) => [name, colours[index]]));
  for (const column of S.columns) {
    if (column.trouble) readExpression(column, expressionOf(column)); // it may have a meaning now
    const lost = [...column.terms.keys()].filter((name) => !names.includes(name));
    if (lost.length) forget(column, lost);
  }
  drawCheckpoints();
  drawColumns();
}

// A column whose answer is of more than what is left.
function forget(column, lost) {
  for (const name of lost) column.terms.delete(name);
  if (isBusy(column)) S.flight.columns = S.flight.columns.map((each) => (each === column ? newColumn([]) : each));
  S.waiting.delete(column);
  Object.assign(column, NOTHING, { text: null, reading: false, trouble: '' });
  column.reads += 1;
}

// The checkpoints of this page; labels are given in the order in which a server's pages open them.
function openedNow() {
  const [first, ...others] = S.checkpoints;
  return { checkpoint: first?.name, digest: first?.digest, others: others.map(({ label, origin }) => ({ label, origin })) };
}

// The comparison as it is shown: to be restored, saved and linked.
function comparison() {
  return {
    model: S.model,
    ...(S.opened ?? openedNow()),
    prompt: S.asked,
    settings: S.settings ?? settingsNow(),
    answers: S.columns.map((column) => ({
      composition: column.answer ? column.answered : expressionOf(column), text: column.answer, language: column.language,
      ...(column.state ? { complete: false } : {}),
      ...(column.trouble ? { error: column.trouble } : {}),
    })),
    ...S.measured,
  };
}

function remember() {
  const now = comparison();
  const what = (past) => JSON.stringify([past.prompt, past.settings, past.answers.map((answer) => answer.composition)]);
  const terms = S.columns.map((column) => (column.answer ? column.askedTerms : [...column.terms]));
  S.history = [...S.history.filter((past) => what(past) !== what(now)), { ...now, terms }].slice(-MOST_PAST);
  history.replaceState(null, '', linkOf(now));
  $('ri-past').replaceChildren(...S.history.map((past) => make('button', { type: 'button', class: 'ri-past', onclick: () => restore(past) },
    make('strong', {}, past.prompt), make('span', { class: 'ri-hint' }, past.answers.map((answer) => answer.composition).join(' · ')))).reverse());
}

function restore(past) {
  stop();
  closeInside();
  prompt.value = past.prompt;
  const { checkpoint, digest, others } = past;
  Object.assign(S, {
    asked: past.prompt, settings: past.settings, opened: { checkpoint, digest, others }, measured: { tokens: past.tokens, seconds: past.seconds },
  });
  showSettings(past.settings);
  S.columns = past.answers.map(({ composition, text, language, complete, error }, index) => ({
    ...newColumn(past.terms[index]), text: composition, trouble: error || '',
    ...(text ? { asked: composition, askedTerms: past.terms[index], answer: text, answered: composition, language } : {}),
    state: complete === false ? 'stopped' : '',
  }));
  S.foot = past.tokens ? `${past.tokens} tokens in all, ${past.seconds.toFixed(1)} s` : '';
  $('ri-history').hidePopover();
  for (const column of S.columns) { // a checkpoint may have been closed since
    if ([...column.terms.keys()].some((name) => !S.names.includes(name))) readExpression(column, column.text);
  }
  fit();
  draw();
}

function linkOf(shown) {
  const query = new URLSearchParams();
  query.append('prompt', shown.prompt ?? prompt.value);
  for (const answer of shown.answers) query.append('c', answer.composition);
  for (const { label, origin } of shown.others) query.append('k', `${label}=${origin}`);
  if (shown.checkpoint) query.append('checkpoint', shown.checkpoint);
  if (shown.digest) query.append('digest', shown.digest);
  const { max_new_tokens: n, temperature: t, seed } = shown.settings;
  const theme = new URLSearchParams(location.search).get('__theme');
  for (const [name, value] of Object.entries({ n, t, seed, __theme: theme })) if (value !== null && !Number.isNaN(value)) query.append(name, value);
  return `${location.pathname}?${query}`;
}

const cell = (text) => text.trim().replace(/\s+/g, ' ').replace(/[\\|]/g, '\\$&').replace(/&/g, '&amp;').replace(/</g, '&lt;');

function asMarkdown(shown) {
  const settings = Object.entries(shown.settings).map(([name, value]) => `${name} ${value}`).join(', ');
  return [
    `**${cell(shown.prompt ?? '')}**`, '', '| composition | language | answer |', '|---|---|---|',
    ...shown.answers.map((answer) => `| \`${answer.composition}\` | ${answer.language ?? ''} | ${cell(answer.text)} |`),
    '', `${shown.model}, checkpoint ${[shown.checkpoint, ...shown.others.map((each) => each.origin)].join(' + ')}; ${settings}`, '',
  ].join('\n');
}

// Only what was answered can be saved: an empty file says nothing.
function save(button, text, kind, name) {
  if (!S.columns.some((column) => column.answer)) return say(button, 'Nothing to save yet');
  const link = make('a', { href: URL.createObjectURL(new Blob([text], { type: kind })), download: name });
  link.click();
  URL.revokeObjectURL(link.href);
  return $('ri-more').hidePopover();
}
