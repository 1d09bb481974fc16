// Checkpoints, history, links and files.

function drawCheckpoints() {
  $('ri-checkpoints-button').textContent = S.checkpoints.map((each) => each.name).join(' + ') || 'Checkpoints';
  $('opened').replaceChildren(...S.checkpoints.map((each) => make('article', { class: 'ri-checkpoint' },
    make('div', { class: 'ri-line' },
      make('h3', {}, each.name), make('span', { class: 'ri-space' }),
      each.label ? make('button', { type: 'button', class: 'ri-quiet', 'aria-label': `Close ${each.name}`, onclick: () => send('close', [each.label]) }, 'Close') : null),
    make('p', {}, ...each.names.map((name) => make('span', { class: 'ri-name', style: `--colour: ${S.colours[name]}` }, name))),
    make('p', { class: 'ri-hint' }, each.about))));
  $('ri-sources').replaceChildren(...S.sources.map((name) => make('option', { value: name })));
  $('ri-open-hint').textContent = `One of ${S.folder}/, or a hub id. Its subspaces are called NAME@LABEL.`;
}

function opened(message) {
  $('ri-open-alert').hidden = !message.error;
  $('ri-open-alert').textContent = message.error || '';
  $('open').disabled = false;
  if (!message.error) {
    takeNames(message);
    if (message.opened) $('source').value = '';
  }
}

function takeNames({ names, colours, checkpoints, sources, folder }) {
  S.names = names;
  S.colours = Object.fromEntries(names.map((name, index) => [name, colours[index]]));
  S.checkpoints = checkpoints;
  S.sources = sources;
  S.folder = folder;
  for (const column of S.columns) {
    const lost = [...column.terms.keys()].filter((name) => !names.includes(name));
    if (!lost.length) continue;
    for (const name of lost) column.terms.delete(name);
    Object.assign(column, { text: null, answer: '', language: null, state: '' }); // it was of more
  }
  drawCheckpoints();
  drawColumns();
}

// The comparison as it is shown: to be restored, saved and linked.
function comparison() {
  return {
    model: S.model,
    checkpoint: S.checkpoints[0]?.name,
    others: S.checkpoints.slice(1).map((each) => each.origin),
    prompt: S.asked,
    settings: { max_new_tokens: $('length').valueAsNumber, temperature: $('temperature').valueAsNumber, seed: $('seed').valueAsNumber },
    answers: S.columns.map((column) => ({ composition: column.answer ? column.answered : expressionOf(column), text: column.answer, language: column.language })),
    tokens: S.tokens,
    seconds: Number(S.seconds.toFixed(2)),
  };
}

function remember() {
  const now = comparison();
  const last = S.history.at(-1);
  const terms = S.columns.map((column) => [...column.terms]);
  const entry = { ...now, terms };
  if (last && last.prompt === now.prompt) S.history[S.history.length - 1] = entry;
  else S.history.push(entry);
  history.replaceState(null, '', linkOf(now));
  $('ri-past').replaceChildren(...S.history.map((past) => make('button', { type: 'button', class: 'ri-past', onclick: () => restore(past) },
    make('strong', {}, past.prompt), make('span', { class: 'ri-hint' }, past.answers.map((answer) => answer.composition).join(' · ')))).reverse());
}

function restore(past) {
  if (S.flight) stop();
  closeInside();
  prompt.value = past.prompt;
  S.asked = past.prompt;
  S.columns = past.answers.map((answer, index) => ({
    ...newColumn(past.terms[index]), text: answer.composition, answer: answer.text, answered: answer.composition, language: answer.language,
  }));
  S.foot = `${past.tokens} tokens in all, ${past.seconds.toFixed(1)} s`;
  $('ri-history').hidePopover();
  fit();
  draw();
}

function linkOf(shown) {
  const query = new URLSearchParams();
  query.append('prompt', shown.prompt ?? prompt.value);
  for (const answer of shown.answers) query.append('c', answer.composition);
  for (const other of shown.others) query.append('k', other);
  if (shown.checkpoint) query.append('checkpoint', shown.checkpoint);
  const { max_new_tokens: n, temperature: t, seed } = shown.settings;
  for (const [name, value] of Object.entries({ n, t, seed })) if (Number.isFinite(value)) query.append(name, value);
  return `${location.pathname}?${query}`;
}

const cell = (text) => text.trim().replace(/\s+/g, ' ').replace(/[\\|]/g, '\\$&').replace(/&/g, '&amp;').replace(/</g, '&lt;');

function asMarkdown(shown) {
  const settings = Object.entries(shown.settings).map(([name, value]) => `${name} ${value}`).join(', ');
  return [
    `**${cell(shown.prompt ?? '')}**`, '', '| composition | language | answer |', '|---|---|---|',
    ...shown.answers.map((answer) => `| \`${answer.composition}\` | ${answer.language ?? ''} | ${cell(answer.text)} |`),
    '', `${shown.model}, checkpoint ${[shown.checkpoint, ...shown.others].join(' + ')}; ${settings}`, '',
  ].join('\n');
}

// Only what was answered can be saved: an empty file says nothing.
function save(button, text, kind, name) {
  if (!S.columns.some((column) => column.answer)) return say(button, 'Nothing to save yet');
  const link = make('a', { href: URL.createObjectURL(new Blob([text], { type: kind })), download: name });
  link.click();
  URL.revokeObjectURL(link.href);
  return $('ri-share').hidePopover();
}
