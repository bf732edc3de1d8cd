// What was spent, by day, LoRA and avatar.

import { useEffect, useState } from 'preact/hooks';
import { api, asProblem } from '../server/api';
import { explain } from '../server/explain';
import { day, duration, fullDay, number, plural, t, usd } from '../i18n';
import { Button, Empty, Loading } from '../parts/ui';
import { reached } from '../state/store';
import type { CostGroup, CostSummary } from '../server/types';

const SPANS = [7, 30, 90];
const MEASURES = ['usd', 'seconds', 'images'] as const;
type Measure = (typeof MEASURES)[number];

const amountOf = (group: CostGroup, measure: Measure): number =>
  measure === 'usd' ? group.actual_usd : group[measure];

function words(amount: number, measure: Measure): string {
  if (measure === 'usd') return usd(amount);
  return measure === 'seconds' ? duration(amount) : number(amount);
}

export function CostsView() {
  const [days, setDays] = useState(30);
  const [summary, setSummary] = useState<CostSummary | null>(null);
  const [problem, setProblem] = useState<string | null>(null);
  const [chosen, setChosen] = useState<Measure | null>(null);
  useEffect(() => {
    let ended = false;
    setProblem(null);
    api.costs(days).then(
      (found) => {
        if (ended) return;
        setSummary(found);
        setProblem(null);
      },
      (error) => ended || setProblem(explain(asProblem(error))),
    );
    return () => {
      ended = true;
    };
    // Also when the server is there again.
  }, [days, reached.value]);
  // A computer without a price has no dollars to show.
  const measure = chosen ?? (summary && summary.total.actual_usd > 0 ? 'usd' : 'seconds');
  return (
    <div class="page costs">
      <header class="page-head">
        <h1>{t('nav.costs')}</h1>
        <div class="row" role="group" aria-label={t('costs.measure')}>
          {MEASURES.map((one) => (
            <Button key={one} aria-pressed={one === measure} onClick={() => setChosen(one)}>
              {t(`costs.${one}`)}
            </Button>
          ))}
        </div>
        <select
          class="narrow"
          aria-label={t('costs.span')}
          value={days}
          onChange={(e) => setDays(Number(e.currentTarget.value))}
        >
          {SPANS.map((span) => (
            <option key={span} value={span}>
              {plural('costs.days', span)}
            </option>
          ))}
        </select>
      </header>
      {problem ? (
        <Empty icon="costs" title={problem} />
      ) : !summary ? (
        <Loading />
      ) : summary.total.contents === 0 ? (
        <Empty icon="costs" title={t('costs.empty')} />
      ) : (
        <Summary summary={summary} measure={measure} />
      )}
    </div>
  );
}

function Summary({ summary, measure }: { summary: CostSummary; measure: Measure }) {
  const { total } = summary;
  const facts: [string, string][] = [
    [t('costs.actual'), usd(total.actual_usd)],
    [t('costs.estimated'), usd(total.estimated_usd)],
    [t('costs.images'), number(total.images)],
    [t('costs.seconds'), duration(total.seconds)],
    [t('costs.perImage'), total.images ? words(amountOf(total, measure === 'images' ? 'seconds' : measure) / total.images, measure === 'images' ? 'seconds' : measure) : '–'],
  ];
  return (
    <>
      <dl class="tiles">
        {facts.map(([name, value]) => (
          <div key={name}>
            <dt>{name}</dt>
            <dd>{value}</dd>
          </div>
        ))}
      </dl>
      <section class="panel">
        <h2>{t('costs.byDay')}</h2>
        <DayChart summary={summary} measure={measure} />
      </section>
      <div class="two">
        <Ranking
          title={t('costs.byLora')}
          groups={withRest(summary.by_lora, total, measure)}
          measure={measure}
          note={t('costs.loraNote')}
        />
        <Ranking title={t('costs.byAvatar')} groups={summary.by_avatar} measure={measure} />
      </div>
      <p class="muted small">
        {t('costs.prices', { date: fullDay(summary.prices_as_of) })}
        {total.unpriced_seconds > 0 &&
          ` ${t('costs.unpriced', { time: duration(total.unpriced_seconds) })}`}
      </p>
    </>
  );
}

/** Every day of the span, also those on which nothing was made. */
function daysOf(summary: CostSummary): string[] {
  const found: string[] = [];
  const last = Date.now();
  for (let back = summary.days - 1; back >= 0; back--)
    found.push(new Date(last - back * 86_400_000).toISOString().slice(0, 10));
  return found;
}

const HEIGHT = 160;

function DayChart({ summary, measure }: { summary: CostSummary; measure: Measure }) {
  const byDay = new Map(summary.by_day.map((group) => [group.day ?? '', amountOf(group, measure)]));
  const days = daysOf(summary);
  const highest = Math.max(...days.map((one) => byDay.get(one) ?? 0), 0);
  const every = Math.ceil(days.length / 8);
  return (
    <div class="chart">
      <span class="chart-top num muted small">{words(highest, measure)}</span>
      <span class="chart-top middle num muted small" aria-hidden="true">
        {words(highest / 2, measure)}
      </span>
      <div class="columns" style={{ height: `${HEIGHT}px` }} aria-hidden="true">
        {days.map((one) => {
          const amount = byDay.get(one) ?? 0;
          return (
            <div key={one} title={`${day(one)}: ${words(amount, measure)}`}>
              <i style={{ height: `${highest ? (amount / highest) * 100 : 0}%` }} />
            </div>
          );
        })}
      </div>
      <div class="chart-days muted small num" aria-hidden="true">
        {days.map((one, place) =>
          (days.length - 1 - place) % every === 0 ? <span key={one}>{day(one)}</span> : null,
        )}
      </div>
      <table class="unseen">
        <caption>{t('costs.byDay')}</caption>
        <tbody>
          {days
            .filter((one) => byDay.get(one))
            .map((one) => (
              <tr key={one}>
                <th scope="row">{day(one)}</th>
                <td>{words(byDay.get(one) ?? 0, measure)}</td>
              </tr>
            ))}
        </tbody>
      </table>
    </div>
  );
}

interface RankingProps {
  title: string;
  groups: CostGroup[];
  measure: Measure;
  note?: string;
}

/** With what no LoRA had a part in, as far as that can be told: contents with two count twice. */
function withRest(groups: CostGroup[], total: CostGroup, measure: Measure): CostGroup[] {
  if (groups.some((group) => group.id === null)) return groups;
  const named = groups.reduce((sum, group) => sum + amountOf(group, measure), 0);
  const rest = amountOf(total, measure) - named;
  // Sums of many fractions are equal but for their last digits.
  if (rest <= amountOf(total, measure) * 1e-6) return groups;
  return [
    ...groups,
    { ...total, id: null, name: null, actual_usd: rest, seconds: rest, images: rest },
  ];
}

function Ranking(props: RankingProps) {
  const { title, groups, measure, note } = props;
  const sorted = [...groups].sort((a, b) => amountOf(b, measure) - amountOf(a, measure));
  const highest = sorted[0] ? amountOf(sorted[0], measure) : 0;
  return (
    <section class="panel">
      <h2>{title}</h2>
      {note && groups.length > 1 && <p class="muted small">{note}</p>}
      {sorted.length ? (
        <ul class="ranking">
          {sorted.map((group) => (
            <li key={group.id ?? 'none'}>
              <span>{group.name ?? t('costs.none')}</span>
              <span class="num">{words(amountOf(group, measure), measure)}</span>
              <i
                aria-hidden="true"
                style={{ width: `${highest ? (amountOf(group, measure) / highest) * 100 : 0}%` }}
              />
            </li>
          ))}
        </ul>
      ) : (
        <p class="muted">{t('costs.nothing')}</p>
      )}
    </section>
  );
}
