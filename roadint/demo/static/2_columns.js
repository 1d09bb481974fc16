// The columns: a composition with its chips, its strengths and its expression, and its answer.

const MOST_COLUMNS = 8;
const STRONGEST = 2; // of a slider; an expression may go further
const LANGUAGES = {
  de: 'German', en: 'English', fr: 'French', es: 'Spanish', it: 'Italian', nl: 'Dutch', pt: 'Portuguese',
};

// What it asks for (terms, and text where it was written), and what was asked and answered.
function newColumn(terms) {
  return { id: ++S.made, terms: new Map(terms), text: null, reads: 0, reading: false, trouble: '', ...NOTHING };
}

const NOTHING = { asked: '', askedTerms: [], answer: '', answered: '', language: null, state: '' };

// What the column asks for: its expression, or while that is not understood, as it was typed.
const expressionOf = (column) => column.text ?? textOf(column.terms);

function drawColumns() {
  const kept = new Map([...$('answers').children].map((element) => [element.dataset.id, element]));
  const drawn = S.columns.map((column) => {
    const element = kept.get(String(column.id)) ?? makeColumn(column);
    fillColumn(element, column);
    return element;
  });
  const more = kept.get('more') ?? make('button', {
    type: 'button', class: 'ri-more', 'data-id': 'more', 'aria-label': 'Add a column', onclick: addColumn,
  }, '+');
  more.hidden = S.columns.length >= MOST_COLUMNS;
  $('answers').style.setProperty('--count', S.columns.length);
  place($('answers'), [...drawn, more]);
}

function makeColumn(column) {
  const expression = make('input', {
    type: 'text', class: 'ri-expression', spellcheck: 'false', autocomplete: 'off',
    'aria-label': 'Composition, as an expression', 'aria-describedby': `trouble-${column.id}`,
    onchange: (event) => readExpression(column, event.target.value),
  });
  return make('article', { class: 'ri-column', 'data-id': column.id },
    make('header', {},
      make('div', { class: 'ri-line' }, expression, make('button', {
        type: 'button', class: 'ri-quiet ri-remove', title: 'Remove',
        onclick: () => removeColumn(column),
      }, '×')),
      make('div', { class: 'ri-chips', role: 'group', 'aria-label': 'Subspaces' })),
    make('div', { class: 'ri-body' },
      make('p', { class: 'ri-trouble', role: 'alert', id: `trouble-${column.id}`, hidden: true }),
      make('p', { class: 'ri-text', tabindex: '-1', dir: 'auto' })),
    make('div', { class: 'ri-under' },
      make('abbr', { class: 'ri-language', hidden: true }),
      make('span', { class: 'ri-state' }),
      make('span', { class: 'ri-space' }),
      make('button', { type: 'button', class: 'ri-quiet ri-copy', onclick: (event) => copy(event.target, column.answer) }, 'Copy'),
      make('button', { type: 'button', class: 'ri-quiet ri-inspect', onclick: () => inspect(column) }, 'Inside')));
}

function fillColumn(element, column) {
  const [name, chips, trouble, text, language, state, copy, inside, remove] = [
    '.ri-expression', '.ri-chips', '.ri-trouble', '.ri-text', '.ri-language', '.ri-state', '.ri-copy', '.ri-inspect', '.ri-remove',
  ].map((selector) => element.querySelector(selector));
  const expression = expressionOf(column);
  element.dataset.composition = expression;
  element.setAttribute('aria-label', expression);
  element.setAttribute('aria-busy', String(isBusy(column)));
  element.classList.toggle('ri-stale', isStale(column));
  element.classList.toggle('ri-refused', Boolean(column.trouble));
  element.classList.toggle('ri-chosen', S.inspected === column.id);
  if (document.activeElement !== name) name.value = expression;
  name.setAttribute('aria-invalid', String(Boolean(column.trouble)));
  remove.setAttribute('aria-label', `Remove ${expression}`);
  fillChips(chips, column);
  const told = S.ready ? column.trouble : ''; // until then, a link's checkpoints are not open
  trouble.hidden = !told;
  if (trouble.textContent !== told) trouble.textContent = told;
  fillAnswer(text, column);
  language.hidden = !column.language || isBusy(column);
  language.textContent = (column.language === 'none' ? '–' : column.language || '').toUpperCase();
  language.title = column.language === 'none' ? 'no words' : LANGUAGES[column.language] || column.language || '';
  const apart = $('differences').checked && column.language && !isInFirstLanguage(column) ? 'in another language' : '';
  state.textContent = isStale(column) ? 'changed' : column.state || apart;
  copy.hidden = !column.answer;
  if (!copy.dataset.before) copy.setAttribute('aria-label', `Copy the answer of ${expression}`);
  inside.hidden = S.asked === null || S.server || isBusy(column);
  inside.setAttribute('aria-label', `Look inside ${expression}`);
  inside.setAttribute('aria-pressed', String(S.inspected === column.id));
}

// An answer is shown of another composition than the one that the column has now.
const isStale = (column) => column.answer !== '' && expressionOf(column) !== column.asked;
const isInFirstLanguage = (column) => column.language === S.columns[0].language;

const isBusy = (column) => S.flight !== null && S.flight.columns.includes(column);

function fillChips(box, column) {
  const kept = new Map([...box.children].map((chip) => [chip.dataset.name, chip]));
  place(box, S.names.map((name) => {
    const chip = kept.get(name) ?? makeChip(column, name);
    const strength = column.terms.get(name);
    const on = strength !== undefined;
    const [button, slider, output] = chip.children;
    chip.style.setProperty('--colour', S.colours[name]);
    chip.classList.toggle('ri-on', on);
    button.setAttribute('aria-pressed', String(on));
    slider.hidden = output.hidden = !on;
    if (on) {
      slider.value = strength;
      slider.setAttribute('aria-valuetext', Number(strength.toFixed(2)));
      output.textContent = Number(strength.toFixed(2));
    }
    return chip;
  }));
}

function makeChip(column, name) {
  const set = (strength) => {
    column.terms.set(name, strength);
    changed(column);
  };
  return make('span', { class: 'ri-chip', 'data-name': name },
    make('button', {
      type: 'button', onclick: () => {
        if (column.terms.has(name)) {
          column.terms.delete(name);
          changed(column);
        } else set(1);
      },
    }, name),
    make('input', {
      type: 'range', min: -STRONGEST, max: STRONGEST, step: 0.05, 'aria-label': `Strength of ${name}`,
      oninput: (event) => set(Number(event.target.value)),
    }),
    make('output', {}));
}

// Words that differ from the first column's, where both are in one language: else all would.
function fillAnswer(box, column) {
  const [first] = S.columns;
  const marks = $('differences').checked && column !== first && !isBusy(column)
    && column.language && isInFirstLanguage(column);
  if (!marks) {
    if (box.textContent !== column.answer || box.children.length) box.textContent = column.answer;
    return;
  }
  box.replaceChildren(...differences(first.answer, column.answer).map(
    (piece) => (piece.differs ? make('mark', {}, piece.text) : piece.text)));
}

// A change by a chip or a slider: the terms are right, the text follows.
function changed(column) {
  Object.assign(column, { text: null, trouble: '', reading: false });
  column.reads += 1; // an expression that is being read is none any more
  settle(column);
}

// Where there is a comparison, the column is asked as soon as the hand rests; else it waits for Ask.
function settle(column) {
  const isNew = S.asked !== null && !column.trouble && expressionOf(column) !== column.asked;
  if (isNew) {
    S.waiting.add(column);
    clearTimeout(S.timer);
    S.timer = setTimeout(askAgain, 400);
  } else S.waiting.delete(column);
  drawColumns();
}

// An expression by hand: the server reads it, and says what it means or what is wrong.
function readExpression(column, text) {
  Object.assign(column, { text, reading: true });
  column.reads += 1;
  if (!S.reading) readNext();
}

// One at a time: of two answers that arrive at once Gradio tells the last. What stays without one is asked again.
function readNext() {
  const column = S.columns.find((each) => each.reading);
  clearTimeout(S.reading);
  S.reading = column ? setTimeout(readNext, 5000) : 0;
  if (column) send('parse', [column.text, [column.id, column.reads]]);
}

function parsed(message) {
  heard(message);
  readNext();
}

function heard({ column: [id, reads], text, strengths, error }) {
  const column = S.columns.find((each) => each.id === id);
  if (!column || column.reads !== reads) return; // it has changed since
  Object.assign(column, { trouble: error || '', reading: false });
  if (!error) Object.assign(column, { terms: new Map(Object.entries(strengths)), text });
  settle(column);
  if (S.held && !S.columns.some((each) => each.reading)) askAll();
}

function addColumn() {
  const column = newColumn(S.names.map((name) => [name, 0.5]));
  S.columns.push(column);
  settle(column);
  $('answers').querySelector(`[data-id="${S.made}"] .ri-chip button`)?.focus();
}

function removeColumn(column) {
  const index = S.columns.indexOf(column);
  S.columns = S.columns.filter((each) => each !== column);
  S.waiting.delete(column);
  if (S.inspected === column.id) closeInside();
  drawColumns();
  const next = S.columns[Math.min(index, S.columns.length - 1)];
  $('answers').querySelector(next ? `[data-id="${next.id}"] .ri-remove` : '.ri-more').focus();
}

// Without https a page has no clipboard but for the old way, by a selection.
async function copy(button, text) {
  if (navigator.clipboard) {
    return navigator.clipboard.writeText(text).then(() => say(button, 'Copied'), () => say(button, 'Not allowed here'));
  }
  const box = make('textarea', { class: 'ri-unseen' });
  box.value = text;
  button.parentElement.append(box);
  box.select();
  const done = document.execCommand('copy');
  box.remove();
  button.focus();
  return say(button, done ? 'Copied' : 'Not allowed here');
}

function say(button, text) {
  const before = button.dataset.before ?? button.textContent;
  button.dataset.before = before;
  button.textContent = text;
  announce(text);
  setTimeout(() => {
    button.textContent = before;
    delete button.dataset.before;
  }, 1500);
}
