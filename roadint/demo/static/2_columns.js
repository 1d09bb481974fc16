// The columns: a composition with its chips, its strengths and its expression, and its answer.

const MOST_COLUMNS = 8;
const STRONGEST = 2; // of a slider; an expression may go further
const LANGUAGES = {
  de: 'German', en: 'English', fr: 'French', es: 'Spanish', it: 'Italian', nl: 'Dutch', pt: 'Portuguese',
};

function newColumn(terms) {
  return { id: ++S.made, terms: new Map(terms), text: null, answer: '', answered: '', language: null, state: '', trouble: '' };
}

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
  $('answers').replaceChildren(...drawn, more);
}

function makeColumn(column) {
  const expression = make('input', {
    type: 'text', class: 'ri-expression', spellcheck: 'false', autocomplete: 'off',
    'aria-label': 'Composition, as an expression',
    onchange: (event) => readExpression(column, event.target.value),
  });
  return make('article', { class: 'ri-column', 'data-id': column.id },
    make('header', {},
      make('div', { class: 'ri-line' }, expression, make('button', {
        type: 'button', class: 'ri-quiet ri-remove', 'aria-label': 'Remove this column', title: 'Remove',
        onclick: () => removeColumn(column),
      }, '×')),
      make('div', { class: 'ri-chips', role: 'group', 'aria-label': 'Subspaces' })),
    make('p', { class: 'ri-trouble', role: 'alert', hidden: true }),
    make('p', { class: 'ri-text', tabindex: '-1' }),
    make('div', { class: 'ri-under' },
      make('abbr', { class: 'ri-language', hidden: true }),
      make('span', { class: 'ri-state' }),
      make('span', { class: 'ri-space' }),
      make('button', { type: 'button', class: 'ri-quiet ri-copy', onclick: (event) => copyAnswer(event.target, column) }, 'Copy'),
      make('button', { type: 'button', class: 'ri-quiet ri-inspect', onclick: () => inspect(column) }, 'Inside')));
}

function fillColumn(element, column) {
  const [name, chips, trouble, text, language, state, copy, inside] = [
    '.ri-expression', '.ri-chips', '.ri-trouble', '.ri-text', '.ri-language', '.ri-state', '.ri-copy', '.ri-inspect',
  ].map((selector) => element.querySelector(selector));
  const expression = expressionOf(column);
  element.dataset.composition = expression;
  element.setAttribute('aria-busy', String(isBusy(column)));
  element.classList.toggle('ri-stale', column.state === 'changed');
  element.classList.toggle('ri-chosen', S.inspected === column.id);
  if (document.activeElement !== name) name.value = expression;
  fillChips(chips, column);
  trouble.hidden = !column.trouble;
  trouble.textContent = column.trouble;
  fillAnswer(text, column);
  language.hidden = !column.language || isBusy(column);
  language.textContent = (column.language === 'empty' ? '–' : column.language || '').toUpperCase();
  language.title = column.language === 'empty' ? 'no text' : LANGUAGES[column.language] || column.language || '';
  state.textContent = column.state;
  copy.hidden = !column.answer;
  copy.setAttribute('aria-label', `Copy the answer of ${expression}`);
  inside.hidden = !S.asked || S.server || isBusy(column);
  inside.setAttribute('aria-label', `Look inside ${expression}`);
  inside.setAttribute('aria-pressed', String(S.inspected === column.id));
}

const isBusy = (column) => S.flight !== null && S.flight.columns.includes(column);

function fillChips(box, column) {
  const kept = new Map([...box.children].map((chip) => [chip.dataset.name, chip]));
  box.replaceChildren(...S.names.map((name) => {
    const chip = kept.get(name) ?? makeChip(column, name);
    const strength = column.terms.get(name);
    const on = strength !== undefined;
    const [button, slider, output] = chip.children;
    chip.classList.toggle('ri-on', on);
    button.setAttribute('aria-pressed', String(on));
    slider.hidden = output.hidden = !on;
    if (on) {
      slider.value = strength;
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
  return make('span', { class: 'ri-chip', 'data-name': name, style: `--colour: ${S.colours[name]}` },
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
    && column.language && column.language === first.language;
  if (!marks) {
    if (box.textContent !== column.answer || box.children.length) box.textContent = column.answer;
    return;
  }
  box.replaceChildren(...differences(first.answer, column.answer).map(
    (piece) => (piece.differs ? make('mark', {}, piece.text) : piece.text)));
}

// A change by a chip or a slider: the terms are right, the text follows.
function changed(column) {
  column.text = null;
  column.trouble = '';
  settle(column);
}

// Answered already, or being answered: again, as soon as the hand rests. Else it waits for Ask.
function settle(column) {
  if (column.answer || isBusy(column)) {
    column.state = 'changed';
    S.waiting.add(column);
    clearTimeout(S.timer);
    S.timer = setTimeout(askAgain, 400);
  }
  drawColumns();
}

// An expression by hand: the server reads it, and says what it means or what is wrong.
function readExpression(column, text) {
  column.text = text;
  send('parse', [text, column.id]);
}

function parsed({ column: id, text, strengths, error }) {
  const column = S.columns.find((each) => each.id === id);
  if (!column) return;
  column.trouble = error || '';
  if (error) column.state = column.answer ? 'changed' : '';
  else {
    column.terms = new Map(Object.entries(strengths));
    column.text = text;
    settle(column);
  }
  drawColumns();
}

function addColumn() {
  S.columns.push(newColumn(S.names.map((name) => [name, 0.5])));
  drawColumns();
  $('answers').querySelector(`[data-id="${S.made}"] .ri-chip button`)?.focus();
}

function removeColumn(column) {
  S.columns = S.columns.filter((each) => each !== column);
  if (S.inspected === column.id) closeInside();
  drawColumns();
}

function copyAnswer(button, column) {
  navigator.clipboard.writeText(column.answer).then(
    () => say(button, 'Copied'), () => say(button, 'Not allowed here'));
}

function say(button, text) {
  const before = button.dataset.before ?? button.textContent;
  button.dataset.before = before;
  button.textContent = text;
  setTimeout(() => { button.textContent = before; }, 1500);
}
